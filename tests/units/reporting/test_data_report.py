"""Do page, tables and document say what was found, and nothing that a file could smuggle in?"""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from rich.console import Console
from training_runs import copper, isolated_atoms, water

from mace.inspection.distributions import distribution
from mace.inspection.inspection import DataReport, Demands, StructureSet, inspect_sets
from mace.pages.charts import histogram
from mace.pages.data_page import write_page
from mace.reporting.document import document_text
from mace.reporting.terminal import print_report, summary_lines, verdict
from mace.structures.reading import read_configurations


class Reader(HTMLParser):
    """Collects tags, attributes and text, and makes sure that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "rect", "line", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "line", "path"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataReport]:
    monkeypatch.chdir(tmp_path)

    def make(frames: list[Atoms], name: str = "train.xyz") -> DataReport:
        write(name, frames, format="extxyz")
        result = read_configurations(name, skip_non_finite=True)
        return inspect_sets([StructureSet("training", result)], Demands(r_max=4.0))

    return make


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def mixed() -> list[Atoms]:
    crystals = copper(4, config_type="crystal")
    crystals[1].arrays["REF_forces"][0, 0] = np.nan
    return [*isolated_atoms(["H", "O", "Cu"]), *water(6, config_type="water"), *crystals]  # type: ignore[arg-type]


def test_the_page_loads_nothing(report: Callable[..., DataReport]) -> None:
    page = write_page(report(mixed()), "Data")
    assert not re.search(r"https?://|<script|<link|<img|<iframe|@import|url\(|\ssrc=|\shref=", page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(read_page(page).tags)


def test_the_page_says_what_was_found(report: Callable[..., DataReport]) -> None:
    made = report(mixed())
    reader = read_page(write_page(made, "Data of a run"))
    for finding in made.findings:
        assert finding.name in reader.text and finding.sentence in reader.text
    for words in ("Data of a run", "train.xyz", "water", "crystal", "IsolatedAtom", "REF_energy", "1 error", "H O Cu"):
        assert words in reader.text
    assert reader.tags.count("figure") == 3  # energies, forces, stress
    assert ("name", "viewport") in reader.attributes
    assert "light-dark(" in write_page(made, "")


def test_text_of_files_is_never_markup(report: Callable[..., DataReport]) -> None:
    frames = [*isolated_atoms(), *water(6, config_type="<svg/onload=x><script>alert(1)</script>")]
    page = write_page(report(frames, "a<b>&.xyz"), "<i>")
    assert "<script" not in page and "<svg/" not in page and "<i>" not in page and "a<b>" not in page
    reader = read_page(page)
    assert "<svg/onload=x><script>alert(1)</script>" in reader.text and "a<b>&.xyz" in reader.text


def test_many_types_and_structures_stay_below_two_megabytes(report: Callable[..., DataReport]) -> None:
    frames = water(400)
    for place, atoms in enumerate(frames):
        atoms.info["config_type"] = f"type {place}"
    page = write_page(report([*isolated_atoms(), *frames]), "Data")
    assert "and 341 more types" in page
    assert len(page.encode()) < 300_000


def test_histograms_are_drawn_to_scale() -> None:
    numbers = distribution(np.array([0.0, 0.0, 0.0, 1.0, 10.0, np.nan]))
    assert numbers is not None and numbers.count == 5 and sum(numbers.counts) == 5
    bars = ElementTree.fromstring(histogram(numbers, "eV")).findall("rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert len(bars) == 3
    assert heights[0] == pytest.approx(3.0 * heights[1], rel=0.01) and heights[1] == heights[2]
    assert bars[0].findtext("title") == "0 to 0.25 eV: 3"


@pytest.mark.parametrize("value", [0.0, -3.5, 1e12, 1e-30])
def test_equal_numbers_can_be_drawn(value: float) -> None:
    numbers = distribution(np.full(7, value))
    assert numbers is not None and max(numbers.counts) == 7
    ElementTree.fromstring(histogram(numbers, "eV"))


def test_the_document_is_json_without_nan(report: Callable[..., DataReport]) -> None:
    made = report(mixed())
    document = json.loads(document_text({"Default": made}), parse_constant=lambda name: pytest.fail(name))
    (file,) = document["files"]
    assert (file["file"], file["role"], file["isolated_atoms"]) == ("train.xyz", "training", 3)
    assert [(g["config_type"], g["frames"]) for g in file["groups"]] == [
        ("water", 6),
        ("crystal", 4),
        ("IsolatedAtom", 3),
    ]
    assert file["groups"][1]["labeled"]["forces"] == 3
    assert document["errors"] == 1
    assert document["findings"][0]["name"] == "non-finite-label"
    assert document["findings"][0]["structures"] == [10]


@pytest.mark.parametrize("width", [40, 200])
def test_the_terminal_shows_every_number_and_finding(report: Callable[..., DataReport], width: int) -> None:
    made = report(mixed())
    output = io.StringIO()
    print_report(made, Console(file=output, width=width))
    text = output.getvalue()
    assert "\u2026" not in text
    for words in ("train.xyz (training): 10 structures, 34 atoms (3-4 each)", "crystal", "[non-finite-label]"):
        assert words in text
    assert verdict(made) in text


def test_the_log_has_one_line_per_file(report: Callable[..., DataReport]) -> None:
    (line,) = summary_lines(report(mixed()))
    assert line.startswith("train.xyz (training): 10 structures, 34 atoms, H O Cu, energy ")
    assert line.endswith(", 3 isolated atoms")


def test_a_file_of_isolated_atoms_alone_has_no_other_structures(report: Callable[..., DataReport]) -> None:
    (line,) = summary_lines(report(isolated_atoms(["H", "O"]), "atoms.xyz"))
    assert line == "atoms.xyz (training): 2 isolated atoms"

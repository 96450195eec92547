"""Does the page of a run work in a browser: plots, choosers, the view of structures, themes, narrow screens?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.io import write
from training_runs import copper, isolated_atoms, labeled, train, water

from mace.cli import plot_train
from mace.errors import UserError
from mace.training.state import TrainingState

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser with playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine to open the page in")

HOSTILE = "</script><img_src=x_onerror=document.title='hacked'>"
HOSTILE_HEAD = "<b onclick='x'>&\"c\""


def stop(_: TrainingState) -> None:
    raise UserError("This is the end.")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a run on molecules, of one on crystals with stress, of one cut short, and of curves alone."""
    folder = tmp_path_factory.mktemp("browser")
    write(folder / "w.xyz", isolated_atoms() + water(10) + water(4, 5, config_type=HOSTILE), format="extxyz")
    write(folder / "t.xyz", water(4, 9, config_type="warm"), format="extxyz")
    crystals = [labeled(Atoms("Cu"), config_type="IsolatedAtom"), *copper(8)]
    write(folder / "c.xyz", crystals, format="extxyz")
    train(folder, folder / "w.xyz", "--name=water", f"--test_file={folder / 't.xyz'}", "--swa", "--max_num_epochs=6")
    train(folder, folder / "c.xyz", "--name=copper", "--loss=stress")
    plot_train.run([str(folder / "results"), f"--output={folder / 'both'}", "--output_format=none"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError):
        patch.setattr(TrainingState, "begin_stage_two", stop)
        train(folder, folder / "w.xyz", "--name=short", "--swa", "--max_num_epochs=6")
    steps = [{"mode": "opt", "epoch": k // 20, "loss": 1.0 + k % 7, "lr": 0.01} for k in range(400)]
    evaluations = [{"mode": "eval", "epoch": k, "head": "Default", "loss": 1.0 / (k + 1)} for k in range(20)]
    (folder / "many.txt").write_text("".join(json.dumps(record) + "\n" for record in steps + evaluations))
    plot_train.run([str(folder / "many.txt"), f"--output={folder / 'many'}", "--output_format=none"])
    write(folder / "a.xyz", isolated_atoms() + water(10), format="extxyz")
    write(folder / "b.xyz", isolated_atoms() + water(6, 3), format="extxyz")
    heads = {name: {"train_file": str(folder / f"{name}.xyz")} for name in "ab"} | {HOSTILE_HEAD: {
        "train_file": str(folder / "b.xyz"), "test_file": str(folder / "t.xyz"),
    }}  # fmt: skip
    train(folder, None, f"--heads={heads!r}", "--name=heads", "--max_num_epochs=3")
    results = folder / "results"
    return {
        "heads": results / "heads_run-7.html",
        "water": results / "water_run-7.html",
        "copper": results / "copper_run-7.html",
        "short": results / "short_run-7.html",
        "both": folder / "both.html",
        "many": folder / "many.html",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Opened:
    """A page, and all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = path.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("#curves svg")

    def close(self) -> None:
        assert self.complaints == []
        assert self.requests == [self.url]
        self.context.close()

    def canvas(self, selector: str) -> str:
        """The picture on a canvas."""
        return str(self.page.locator(selector).first.evaluate("canvas => canvas.toDataURL()"))


@pytest.mark.parametrize("name", ["water", "copper", "short", "both", "many", "heads"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_the_page_fits_and_is_quiet(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    opened = Opened(browser, pages[name], width, scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.title() != "hacked"
    opened.close()


def test_the_choosers_change_what_is_added_up(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["water"])
    page, said = opened.page, opened.page.locator("[data-errors=forces]")
    everything = said.inner_text()
    assert "162 values" in everything  # 14 + 4 molecules of three atoms
    before = opened.canvas("#errors canvas")
    page.get_by_label("element").select_option("O")
    assert "54 values" in said.inner_text()
    page.get_by_label("set", exact=True).select_option(label="warm")
    assert "12 values" in said.inner_text()
    assert opened.canvas("#errors canvas") != before
    page.get_by_label("element").select_option("all")
    page.get_by_label("set", exact=True).select_option("all")
    page.get_by_label("config_type").select_option(label=HOSTILE)
    assert "36 values" in said.inner_text()
    page.get_by_label("model", exact=True).select_option("0")
    assert page.locator("#errors figure").first.is_visible()
    opened.close()


def test_curves_are_read_by_pointer_and_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["water"])
    page = opened.page
    plot = page.locator("#curves svg").first
    plot.hover()
    assert "epochs done" in page.locator("#curves .tip").first.inner_text()
    plot.focus()
    page.keyboard.press("Home")
    assert page.locator("#curves .tip").first.inner_text().startswith("0 epochs done")
    page.keyboard.press("End")
    assert page.locator("#curves .tip").first.inner_text().startswith("6 epochs done")
    page.get_by_role("button", name="MAE").click()
    assert page.get_by_text("MAE of forces, validation").is_visible()
    assert not page.get_by_text("RMSE of forces, validation").is_visible()
    page.get_by_role("button", name="linear").click()
    page.locator("#curves summary").first.click()
    page.wait_for_selector("#curves details[open] tbody tr")
    assert page.locator("#curves details").first.locator("tbody tr").count() > 6
    opened.close()


@pytest.mark.parametrize(("name", "dashed"), [("water", 1), ("many", 0)])
def test_the_legend_shows_lines_as_they_are_drawn(browser: Any, pages: dict[str, Path], name: str, dashed: int) -> None:
    """The training loss is dashed, unless it has so many points that dashes would run together."""
    opened = Opened(browser, pages[name])
    loss = opened.page.locator("#curves figure").first
    assert loss.locator("path.curve.dashed").count() == loss.locator(".swatch.dashed").count() == dashed
    assert loss.locator("path.curve").count() == loss.locator(".swatch").count() == 2
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_a_head_is_chosen_for_the_whole_page(browser: Any, pages: dict[str, Path], width: int, scheme: str) -> None:
    opened = Opened(browser, pages["heads"], width, scheme)
    page, values = opened.page, opened.page.locator("[data-errors=forces]")
    choice = page.get_by_label("head", exact=True)
    assert choice.locator("option").all_inner_texts() == ["all heads", "a", "b", HOSTILE_HEAD]
    # 10 + 6 + 6 molecules of three atoms, and four to test
    assert "234 values" in values.inner_text()
    loss = page.locator("#curves figure").first
    assert loss.locator("path.curve").count() == 5  # training, three heads, what chooses the best
    for head, n_values, n_files, n_sets in (("a", 90, 1, 2), (HOSTILE_HEAD, 90, 2, 3), ("b", 54, 1, 2)):
        choice.select_option(label=head)
        assert f"{n_values} values" in values.inner_text()
        assert loss.locator("path.curve").count() == 3
        assert loss.locator(".legend button:visible").all_inner_texts()[1] == f"validation {head}"
        assert page.locator("#errors details[data-by=set] tbody tr").count() == n_sets
        assert page.locator("#errors details[data-by=head]").count() == 0
        assert page.locator("#heads tbody tr:visible").count() == 1
        assert page.locator("#elements tbody tr:visible").count() == 2
        assert page.locator("#elements figure:visible").count() == 1
        assert page.locator("#data h3:visible").all_inner_texts() == ["Sets", f"Files of head {head}"]
        assert page.locator("#data table:visible").nth(1).locator("tbody tr").count() == n_files
        listed = {text.split(":")[0] for text in page.locator("#worst tbody tr button").all_inner_texts()}
        assert listed == ({f"{head}.xyz"} if head in ("a", "b") else {"b.xyz", "t.xyz"})
    choice.select_option(label="all heads")
    assert "234 values" in values.inner_text() and page.locator("#heads tbody tr:visible").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def test_a_run_cut_short_shows_its_last_validation(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["short"])
    assert "values" in opened.page.locator("[data-errors=forces]").inner_text()
    assert opened.page.locator("#worst tbody tr").count() > 0
    assert opened.page.get_by_text("Predictions for the validation set after epoch").is_visible()
    opened.close()


def test_structures_turn_and_zoom(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["copper"])
    page, view = opened.page, ".viewer canvas"
    pictures = [opened.canvas(view)]
    page.locator(view).focus()
    page.keyboard.press("ArrowLeft")
    pictures.append(opened.canvas(view))
    page.locator(view).scroll_into_view_if_needed()
    box = page.locator(view).bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 190, steps=3)
    page.mouse.up()
    pictures.append(opened.canvas(view))
    for name in ("zoom in", "turn up", "force errors"):
        page.get_by_role("button", name=name).click()
        pictures.append(opened.canvas(view))
    page.locator("#worst tbody tr button").nth(2).click()
    pictures.append(opened.canvas(view))
    page.get_by_label("rank by error of").select_option("stress")
    assert len(set(pictures)) == len(pictures)
    opened.close()


def test_the_theme_is_that_of_the_system_and_can_be_switched(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["water"], scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark, drawn = opened.page.evaluate(background), opened.canvas("#errors canvas")
    opened.page.get_by_role("button", name="Switch to the light theme").click()
    assert opened.page.evaluate(background) != dark
    assert opened.canvas("#errors canvas") != drawn
    assert len(opened.page.pdf()) > 10_000
    opened.close()

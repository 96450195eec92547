"""A report on data as a JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mace
from mace.errors import UserError
from mace.inspection.inspection import DataReport

FORMAT = 1
"""Raised when a key changes its meaning."""


def as_document(report: DataReport) -> dict[str, Any]:
    """Turn a report into what JSON can hold; numbers are in eV and Angstrom."""
    return {
        "format": FORMAT,
        "program": f"mace {mace.__version__}",
        "r_max": report.r_max,
        "reference_energies": {str(number): energy for number, energy in report.reference_energies.items()},
        "reference_source": report.reference_source,
        "files": [
            {
                "file": file.file,
                "role": file.role,
                "isolated_atoms": file.labels.isolated_atoms,
                "labels": [
                    {
                        "label": entry.name,
                        **{name: getattr(entry, name) for name in ("key", "places", "labeled", "converted", "frames")},
                    }
                    for entry in file.labels.coverage
                ],
                "whole": asdict(file.whole),
                "groups": [asdict(group) for group in file.groups],
            }
            for file in report.files
        ],
        "findings": [{"level": finding.level, **asdict(finding)} for finding in report.findings],
        "errors": len(report.errors),
    }


def write_text(path: str | Path, text: str, flag: str) -> Path:
    """Write a file and create its folder.

    Args:
        path: Where to.
        text: What to write.
        flag: The flag that chooses another place, for the message.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written there ({error.strerror}); choose another {flag}."
        ) from error
    return path


def document_text(reports: Mapping[str, DataReport]) -> str:
    """Write the reports of heads as JSON: that of the only head as it is, those of several by name."""
    documents = {head: as_document(report) for head, report in reports.items()}
    document: Mapping[str, Any] = next(iter(documents.values()))
    if len(documents) > 1:
        errors = sum(one["errors"] for one in documents.values())
        document = {"format": FORMAT, "program": document["program"], "heads": documents, "errors": errors}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"

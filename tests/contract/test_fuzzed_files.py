"""Is a file damaged at random refused or opened, and never anything else?"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import fuzz


def test_three_hundred_damaged_files(tmp_path: Path) -> None:
    counts, defects = fuzz(range(300), tmp_path)
    assert not defects
    assert counts["refused"] > 100 and counts["opened"] > 10, counts


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files(tmp_path: Path) -> None:
    """About twenty minutes; ``python tests/fuzzing.py`` does the same in pieces."""
    counts, defects = fuzz(range(300, 100_300), tmp_path)
    assert not defects
    assert counts["refused"] > 30_000, counts

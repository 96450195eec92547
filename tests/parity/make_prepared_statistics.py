"""Let the original compute the statistics of a small training set, in a virtual environment of its own.

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 mace-torch==0.3.16
    PATH=oracle/bin:$PATH python tests/parity/make_prepared_statistics.py tests/parity/references/prepared

From those of ``structures.xyz`` that have forces it writes ``labeled.xyz``, and the ``statistics.json`` of
``mace_prepare_data``, which sets a third of them aside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("--valid_fraction=0.34", "--seed=5", "--r_max=4.0", "--compute_statistics")
ENERGIES = "{1: -13.6, 6: -1027.2, 8: -2041.8, 13: -57.0, 14: -102.5}"


def main(folder: Path) -> None:
    """Write both files."""
    lines = (folder / "structures.xyz").read_text().splitlines(keepends=True)
    kept, place = list[str](), 0
    while place < len(lines):
        end = place + 2 + int(lines[place])
        if "REF_forces" in lines[place + 1]:
            kept += lines[place:end]
        place = end
    given = folder / "labeled.xyz"
    given.write_text("".join(kept))
    with tempfile.TemporaryDirectory() as work:
        flags = [*FLAGS, "--num_process=1", f"--h5_prefix={work}/", f"--work_dir={work}", f"--E0s={ENERGIES}"]
        subprocess.run(["mace_prepare_data", f"--train_file={given}", *flags], check=True)
        (folder / "statistics.json").write_text((Path(work) / "statistics.json").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

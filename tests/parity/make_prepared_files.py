"""Let the original prepare a small file of structures, in a virtual environment of its own.

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 mace-torch==0.3.16
    PATH=oracle/bin:$PATH python tests/parity/make_prepared_files.py tests/parity/references/prepared

It writes ``structures.xyz``, which has whatever a structure may carry, and ``prepared.zip`` with the folders ``train``
and ``val`` and the ``statistics.json`` of ``mace_prepare_data``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from original_inputs import ENERGIES, structures


def write_structures(file: Path) -> None:
    """Write structures with and without labels, weights, types and types."""
    rng = np.random.default_rng(3)
    lines: list[str] = []
    for place, atoms in enumerate([*structures(), *structures()]):
        entries = {"REF_energy": repr(sum(ENERGIES[z] for z in atoms.numbers.tolist()) - 0.1 * place)}
        entries["config_type"] = ("wet", "Default", "slab")[place % 3]
        columns = {"REF_forces": rng.normal(size=(len(atoms), 3))}
        if atoms.pbc.all():
            entries["REF_stress"] = f'"{" ".join(map(repr, rng.normal(size=9).tolist()))}"'
        if place == 0:
            entries |= {"config_weight": "2.5", "config_forces_weight": "0.25", "note": "first"}
            columns["REF_charges"] = rng.normal(size=(len(atoms), 1))
        if place == 4:
            del columns["REF_forces"]
            entries |= {"config_stress_weight": "0.0"}
        if place == 5:
            entries |= {"my_dipole": '"0.1 0.2 0.3"'}
        entries["Lattice"] = f'"{" ".join(map(repr, atoms.cell.array.ravel().tolist()))}"'
        entries["pbc"] = f'"{" ".join("FT"[bool(p)] for p in atoms.pbc)}"'
        named = "".join(f":{name}:R:{values.shape[1]}" for name, values in columns.items())
        entries["Properties"] = f"species:S:1:pos:R:3{named}"
        lines += [str(len(atoms)), " ".join(f"{key}={value}" for key, value in entries.items())]
        for atom, symbol in enumerate(atoms.get_chemical_symbols()):
            numbers = [*atoms.positions[atom], *(x for values in columns.values() for x in values[atom])]
            lines.append(" ".join([symbol, *(repr(float(x)) for x in numbers)]))
    file.write_text("\n".join(lines) + "\n")


def main(folder: Path) -> None:
    """Write all files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_structures(folder / "structures.xyz")
    given = str(folder / "structures.xyz")
    with tempfile.TemporaryDirectory() as place:
        flags = ["--num_process=2", f"--h5_prefix={place}/", f"--work_dir={place}", "--r_max=4.0", "--shuffle=False"]
        flags += ['--config_type_weights={"Default": 1.0, "slab": 3.0}', "--dipole_key=my_dipole", f"--E0s={ENERGIES}"]
        flags += [f"--train_file={given}", f"--valid_file={given}", "--compute_statistics"]
        subprocess.run(["mace_prepare_data", *flags], check=True)
        shutil.make_archive(str(folder / "prepared"), "zip", place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Stands where the conversion for LAMMPS of mace-torch is run, with ``python -m``: says what to use instead."""

from __future__ import annotations

from mace.cli.original_commands import refusal

main = refusal("mace_create_lammps_model")

if __name__ == "__main__":
    main()

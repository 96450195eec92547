"""Stands where mace-torch has the command mace_create_lammps_model: says what to use instead."""

from mace.cli.original.commands import refusal

main = refusal("mace_create_lammps_model")

if __name__ == "__main__":
    main()

"""Stands where mace-torch has the command mace_e3nn_cueq: says what to use instead."""

from mace.cli.original_commands import refusal

main = refusal("mace_e3nn_cueq")

if __name__ == "__main__":
    main()

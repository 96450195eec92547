"""Stands where mace-torch has the command mace_active_learning_md: says what to use instead."""

from mace.cli.original.commands import refusal

main = refusal("mace_active_learning_md")

if __name__ == "__main__":
    main()

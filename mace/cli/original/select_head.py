"""Stands where mace-torch has the command mace_select_head: says what to use instead."""

from mace.cli.original_commands import refusal

main = refusal("mace_select_head")

if __name__ == "__main__":
    main()

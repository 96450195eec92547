"""Stands where mace-torch has the command mace_finetuning_select: says what to use instead."""

from mace.cli.original_commands import refusal

main = refusal("mace_finetuning_select")

if __name__ == "__main__":
    main()

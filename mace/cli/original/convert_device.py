"""Stands where mace-torch has the command mace_convert_device: says what to use instead."""

from mace.cli.original.commands import refusal

main = refusal("mace_convert_device")

if __name__ == "__main__":
    main()

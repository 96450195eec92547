"""Stands where mace-torch has the command mace_prepare_data: says what to use instead."""

from mace.cli.original.commands import refusal, refused_call

main = refusal("mace_prepare_data")
run = refused_call("mace_prepare_data")

if __name__ == "__main__":
    main()

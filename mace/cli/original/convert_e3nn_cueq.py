"""Stands where mace-torch has the command mace_e3nn_cueq: says what to use instead."""

from mace.cli.original.commands import refusal, refused_call

main = refusal("mace_e3nn_cueq")
run = refused_call("mace_e3nn_cueq")

if __name__ == "__main__":
    main()

"""Stands where mace-torch has the command mace_cueq_to_e3nn: says what to use instead."""

from mace.cli.original.commands import refusal, refused_call

main = refusal("mace_cueq_to_e3nn")
run = refused_call("mace_cueq_to_e3nn")

if __name__ == "__main__":
    main()

"""Stands where mace-torch has a program of this name: says what to use instead."""

from mace.cli.original.commands import refusal, refused_call

main = refusal("mace.cli.convert_e3nn_hybrid")
run = refused_call("mace.cli.convert_e3nn_hybrid")

if __name__ == "__main__":
    main()

"""Stands where mace-torch has a program of this name: says what to use instead."""

from mace.cli.original.commands import refusal

main = refusal("mace.cli.visualise_train")

if __name__ == "__main__":
    main()

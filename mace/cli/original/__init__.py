"""Programs of mace-torch that this package has not, under their names there: each says what to use instead."""

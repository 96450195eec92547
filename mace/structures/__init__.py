"""From `Frame`s to `Configuration`s and collections of them: label keys, splitting, reference energies, statistics."""

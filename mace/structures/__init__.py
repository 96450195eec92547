"""From files on disk to `Configuration`s: reading, label keys, splitting, reference energies, statistics."""

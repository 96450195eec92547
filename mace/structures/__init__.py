"""Files on disk become `Configuration`s: reading, label keys, splitting, reference energies, statistics."""

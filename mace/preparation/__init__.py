"""Everything computed before the first step: structures, reference energies, statistics and the model plan."""

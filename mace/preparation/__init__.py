"""Everything that is known before the first step: structures, reference energies, statistics, the plan."""

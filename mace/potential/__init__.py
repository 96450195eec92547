"""Model files opened to compute energies and forces."""

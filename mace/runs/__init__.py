"""A whole training run: its stages, its files, how it is resumed, and what is written at its end."""

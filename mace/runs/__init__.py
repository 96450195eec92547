"""A whole run: its stages, its files, how it is taken up again and what is written at its end."""

"""Pictures and self-contained pages on data and on runs."""

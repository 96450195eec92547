"""Files: written whole or not at all, owned by one run, and read without being run."""

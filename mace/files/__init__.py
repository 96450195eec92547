"""Files: written completely or not at all, owned by one run, and read without executing anything in them."""

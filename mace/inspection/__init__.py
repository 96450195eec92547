"""Configurations become findings: what is in the data, what is wrong with it, and what looks as if it were."""

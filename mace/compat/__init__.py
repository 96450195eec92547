"""The only place that knows the names and formats of mace-torch."""

"""What is no test of this project."""

collect_ignore = ["make_models.py"]  # runs beside the original, in an environment of its own

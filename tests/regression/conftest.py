"""What is no test of this project."""

collect_ignore = ["make_samples.py"]  # writes the samples

"""What is no test of this project."""

collect_ignore = [
    *("make_references.py", "make_head_references.py", "make_models.py", "make_old_references.py"),
    "make_prepared_files.py",
]
"""These are run beside the original, in an environment of its own."""

"""From settings and data to the plan of a model and what is minimized."""

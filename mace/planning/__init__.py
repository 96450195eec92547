"""From settings and data to the plan of a model and its losses."""

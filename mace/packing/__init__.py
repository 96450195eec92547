"""Files of structures become prepared sets on disk: in parts, by several processes, taken up again after an end."""

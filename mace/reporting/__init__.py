"""What was found in the data, for people and programs: terminal tables, a page with plots, JSON."""

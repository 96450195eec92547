"""What builds the documentation site out of ``docs/``: equations, generated parts, checks."""

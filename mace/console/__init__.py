"""Interaction with a person at a terminal: messages, progress, signals."""

"""Devices, and the processes of a run."""

"""Where work is done: devices, and the processes of a run."""

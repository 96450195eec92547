"""The first hour: from labeled structures to settings with reasons, and the time they take on this machine."""

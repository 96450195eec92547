"""What a person at a terminal sees and does: messages, progress, signals."""

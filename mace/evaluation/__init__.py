"""From trained weights to programs that use them: the model file and evaluation."""

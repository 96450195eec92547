"""Evaluation of trained models on files of structures, descriptors, and descriptions of models."""

"""Assertions for tests of potentials, of this project and of others."""

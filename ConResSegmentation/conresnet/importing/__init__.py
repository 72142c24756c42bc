"""Checkpoints of the paper's authors, converted to model packages."""

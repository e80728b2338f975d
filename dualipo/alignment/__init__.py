"""Aligning the generator with preferences: losses, noise-level weights and the training loop."""

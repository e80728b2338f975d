"""The one training loop: resumable, on one process or many; callers supply each step's loss (docs/training.md)."""

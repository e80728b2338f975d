"""Dual-iterative preference optimization of text-to-video models."""

__version__ = "0.1.0"

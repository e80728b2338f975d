"""Kubernetes: what is deployed there, whether it is sound, and whether it answers."""

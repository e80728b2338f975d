"""The critic: votes over sampled reasoning, preference certainty, and its training."""

"""Measures that decide promotions: the critic's agreement with people, and the generator's benchmark."""

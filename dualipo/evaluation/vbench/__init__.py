"""VBench (Huang et al., CVPR 2024): its official prompts sampled here, scored by its own code in its own environment.

The prompt suite in `official/` is VBench's, under the Apache License 2.0. docs/vbench.md says how it is run.
"""

"""The papers' ablations as studies: variants of the experiment over several seeds, and whether each claim holds."""

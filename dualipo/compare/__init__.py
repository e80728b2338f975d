"""Generator versions side by side on the same prompts and seeds: gathered into one plain dict, and that as one page.

`versions.py` finds what is meant, `measured.py` the clips and scores of each, `sampled.py` makes them anew where that
is asked for, `collect.py` gathers, and `page.py` draws.
"""

from dualipo.compare.collect import collect
from dualipo.compare.page import render

__all__ = ["collect", "render"]

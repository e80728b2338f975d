"""The report of a run: everything under runs/ gathered into one plain dict, and that dict as one page."""

from dualipo.report.collect import collect
from dualipo.report.page import render

__all__ = ["collect", "render"]

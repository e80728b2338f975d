"""Tracking: every step a run, every model a registered version, every link an md5. The only package that uses MLflow.

An experiment is a run, a round its child, a step its grandchild; they are found again by tags, so that steps may be
recorded from separate processes and machines. docs/lineage.md lists the tags.
"""

from dualipo.tracking.entries import Artifact, Link, StepRun, Version
from dualipo.tracking.store import Unreachable, tracking_uri
from dualipo.tracking.tracker import Tracker

__all__ = ["Artifact", "Link", "StepRun", "Tracker", "Unreachable", "Version", "tracking_uri"]

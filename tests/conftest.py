"""What every test starts from: two workers share the machine's cores, and nothing calls home."""

import os
from pathlib import Path

import pytest

os.environ |= {
    "DUALIPO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parents[1]

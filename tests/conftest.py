"""What every test starts from: two workers share the machine's cores, and nothing calls home."""

import os
import signal
from pathlib import Path

import pytest

os.environ |= {
    "DUALIPO_THREADS": "1",
    "DUALIPO_PROCESSES": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}
os.environ.pop("MLFLOW_TRACKING_URI", None)
# A shell that starts a command in the background has it ignore Ctrl-C, and what the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a round that goes on tells the steps of the next; read only."""
    path = tmp_path_factory.mktemp("course") / "course.json"
    path.write_text('{"stop": false}')
    return path


@pytest.fixture(scope="session")
def critic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny critic with random weights, saved; read only."""
    from models import save_critic

    return save_critic(tmp_path_factory.mktemp("models") / "critic")


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CogVideoX pipeline with random weights, saved; read only."""
    from models import save_generator

    return save_generator(tmp_path_factory.mktemp("models") / "generator")


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan pipeline with random weights, saved; read only."""
    from models import save_wan

    return save_wan(tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture(scope="session")
def ltx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LTX-Video pipeline with random weights, saved; read only."""
    from models import save_ltx

    return save_ltx(tmp_path_factory.mktemp("models") / "ltx")


@pytest.fixture(scope="session")
def packed_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten prompts of two tiny clips, packed; read only."""
    from test_report import SEEDS, prompts, write_clips

    folder = tmp_path_factory.mktemp("packed") / "clips"
    write_clips(folder, prompts(10), SEEDS, 0.6)
    return folder


@pytest.fixture(scope="session")
def known_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Human labels of other prompts, most of them unanimous; read only."""
    from annotating import write_known

    return write_known(tmp_path_factory.mktemp("known") / "labels")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes MLflow seconds, copying it none."""
    from dualipo.config import Config
    from dualipo.tracking import Tracker

    root = tmp_path_factory.mktemp("empty")
    Tracker(root, Config()).store.client.search_experiments()
    return root / "mlflow.db"

"""The type hints hold: mypy finds nothing in what pyproject.toml has it check."""

import subprocess
import sys


def test_mypy_finds_no_error(repository):
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr

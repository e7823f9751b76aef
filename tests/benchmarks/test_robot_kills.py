"""Kills of a training on an arm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "robot_kills.py"


@pytest.mark.slow
def test_kill_again_and_again__ten_kills_lose_at_most_the_current_episode() -> None:
    """In a process of its own, which forks the sessions."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "10"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 10
    assert result["episodes"] > 0

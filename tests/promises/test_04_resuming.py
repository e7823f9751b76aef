"""Promise 4: resuming is exact, and no interruption loses the last complete checkpoint."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import different, files, last_state, metric_rows, train

from residual_rl.runs.checkpoint import CheckpointFolder


@pytest.mark.parametrize("learner", ["ppo", pytest.param("sac", marks=pytest.mark.slow)])
def test_runner__a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, learner: str) -> None:
    settings = {"learner": learner, "total_timesteps": 96, "eval_freq": 64}
    train(tmp_path / "whole", **settings)
    train(tmp_path / "resumed", stop_at=64, **settings)
    train(tmp_path / "resumed", resume=True, **settings)
    assert different(last_state(tmp_path / "whole"), last_state(tmp_path / "resumed")) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "resumed")
    for folder in ("best_model", "final_model", "eval_results"):
        assert files(tmp_path / "whole" / folder) == files(tmp_path / "resumed" / folder), folder


def test_checkpoint_folder__falls_back_from_a_damaged_checkpoint_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path)
    paths = [folder.save(step, {"step": step}) for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-3])
    assert folder.latest() == (2, {"step": 2})
    record = next(r for r in caplog.records if r.levelno == logging.WARNING)
    assert paths[2].name in record.getMessage()
    assert f"FALLING BACK to the previous checkpoint, {paths[1]}" in record.getMessage()
    # Training resumes at step 2 and saves before step 3: the damaged file must not hide the new one.
    caplog.clear()
    assert CheckpointFolder(tmp_path, keep=1).save(2, {"again": 2}).exists()
    assert folder.latest() == (2, {"again": 2})
    assert "step_000000003.safetensors.abandoned" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000002.safetensors",
        "step_000000003.safetensors.abandoned",
    ]


SAVER = """
import os, sys, torch
torch.set_num_threads(1)
from residual_rl.runs.checkpoint import CheckpointFolder
folder = CheckpointFolder(sys.argv[1])
for line in sys.stdin:
    step, pid = int(line), os.fork()
    while pid == 0:
        step += 1
        folder.save(step, {"step": step, "weights": torch.full((200_000,), float(step))})
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_checkpoint_folder__kill_9_at_any_time_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    folder, rng, interrupted, last = CheckpointFolder(tmp_path), random.Random(0), 0, 0
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(1000):  # on a tmpfs, few interrupt a write
            print(last, file=saver.stdin, flush=True)
            pid = int(saver.stdout.readline())
            end = time.monotonic() + 60.0
            try:
                while folder.files().keys() <= {*range(last + 1)}:  # until at least one is written
                    assert time.monotonic() < end, "waited too long"
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.02))
            finally:
                os.kill(pid, signal.SIGKILL)  # otherwise the saver would never end
            assert int(saver.stdout.readline()) == signal.SIGKILL
            found = folder.latest()
            assert found is not None
            step, state = found
            assert step == state["step"] > last
            assert state["weights"].unique().tolist() == [step]
            last = step
            interrupted += any(p.suffix == ".tmp" for p in tmp_path.iterdir())
            if interrupted >= 2:
                break
        saver.stdin.close()
    assert interrupted >= 2, "no kill interrupted a write, so nothing was tested"

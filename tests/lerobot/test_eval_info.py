"""`eval_info.json` as LeRobot's own functions write it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from residual_rl.evaluation.evaluated import read_evaluated

pytestmark = pytest.mark.lerobot

OUTCOMES = {1000: 1.0, 1001: 0.0, 1002: 0.0, 1003: 1.0, 1004: 1.0}


PROCESSORS = dict.fromkeys(("env_preprocessor", "env_postprocessor", "preprocessor", "postprocessor"))


def rollout(seeds: list[int], **_: Any) -> dict[str, torch.Tensor]:
    """Episodes of two steps, the second of which is solved according to the seed."""
    solved = torch.tensor([OUTCOMES.get(seed, 0.0) for seed in seeds])
    steps = torch.stack([torch.zeros_like(solved), solved], 1)
    return {"reward": steps, "success": steps.bool(), "done": torch.tensor([[False, True]] * len(seeds))}


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A policy of LeRobot's that is never asked, since `rollout` gives the episodes."""
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.scripts import lerobot_eval

    monkeypatch.setattr(lerobot_eval, "rollout", rollout)
    monkeypatch.setattr(PreTrainedPolicy, "__abstractmethods__", frozenset())
    policy: Any = PreTrainedPolicy.__new__(PreTrainedPolicy)
    torch.nn.Module.__init__(policy)
    return policy


def test_lerobot_tasks__reads_what_eval_policy_all_returns(tmp_path: Path, policy: Any) -> None:
    from lerobot.scripts import lerobot_eval

    info = lerobot_eval.eval_policy_all(
        envs={
            "so101_paper": {0: SimpleNamespace(num_envs=2, close=lambda: None)}
        },  # three batches, the last of one episode
        policy=policy,
        **PROCESSORS,
        n_episodes=5,
        start_seed=1000,
    )
    with (tmp_path / "eval_info.json").open("w") as file:  # as `lerobot-eval` writes it
        json.dump(info, file, indent=2)
    found = read_evaluated(tmp_path, lerobot_seed=1000)
    assert found.tasks == {"so101_paper": {"success_once": OUTCOMES, "return": OUTCOMES}}


def test_lerobot_tasks__reads_what_eval_policy_returns(tmp_path: Path, policy: Any) -> None:
    from lerobot.scripts import lerobot_eval

    info = lerobot_eval.eval_policy(
        SimpleNamespace(num_envs=5, close=lambda: None),
        policy,
        **PROCESSORS,
        n_episodes=5,
        start_seed=1000,
    )
    (tmp_path / "eval_info.json").write_text(json.dumps(info))
    assert read_evaluated(tmp_path).tasks == {"task": {"success_once": OUTCOMES, "return": OUTCOMES}}

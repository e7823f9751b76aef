"""Promise 5: evaluation runs fixed seeds, each once, for any number of envs; differences are paired."""

from __future__ import annotations

import fakes
import pytest
import torch

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.evaluation.compare import summarize
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.residual_env import ResidualEnv

SEEDS = [8, 3, 11, 2, 30, 5, 17]


def evaluated(num_envs: int, speed: float = 0.4) -> tuple[Episodes, list[int]]:
    """Metrics of the episodes, and their seeds in the order in which they ended."""
    vec_env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=30), num_envs)
    env = ResidualEnv(vec_env, BasePolicyExecutor(fakes.Homing(speed), vec_env), 0.5, 0.0)
    ended: list[int] = []
    metrics = evaluate(
        env,
        no_residual(env),
        SEEDS,
        on_step=lambda _, info: (
            ended.extend(info["final_info"]["seed"][info["_final_info"]].tolist())
            if info["_final_info"].any()
            else None
        ),
    )
    return metrics, ended


@pytest.mark.parametrize("num_envs", [2, 3, 7, 9])
def test_evaluate__runs_each_seed_once_for_any_number_of_envs(num_envs: int) -> None:
    reference, order = evaluated(1)
    assert order == SEEDS
    assert len(reference["episode_length"].unique()) > 1
    metrics, ended = evaluated(num_envs)
    assert sorted(ended) == sorted(SEEDS)
    for name, values in reference.items():
        assert torch.equal(metrics[name], values), name
    assert {"success_once", "success_at_end"} <= reference.keys()


def test_summarize__pairs_episodes_of_equal_seed() -> None:
    fast, slow = (
        {"episode_length": torch.tensor([1.0, 2.0, 4.0])},
        {"episode_length": torch.tensor([2.0, 4.0, 8.0])},
    )
    paired = summarize({"residual": fast, "base": slow}, [4, 9, 1], "point", {}, {})["paired"][
        "residual-base"
    ]
    # Differences -1, -2, -4: mean -7/3, s = 1.527525, t(2) = 4.302653, half width 4.302653 s / √3 = 3.794606.
    assert paired["episode_length"]["mean"] == pytest.approx(-7 / 3)
    assert paired["episode_length"]["interval"] == pytest.approx([-6.127939, 1.461272], abs=1e-4)

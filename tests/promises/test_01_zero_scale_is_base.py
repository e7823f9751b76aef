"""Promise 1: with a scale of zero or an untrained residual, the result equals the base policy bit for bit."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import config

from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.registry import LEARNERS

SEEDS = [3, 1, 4, 15, 9]
PUBLISHED_INIT = {"policy-decorator": {"output_init": 0.0}}
"""Settings of learners whose published initialisation of the last layer is not zero."""


@pytest.mark.parametrize("learner_id", [spec.id for spec in LEARNERS.all()])
def test_make_learner__untrained_residual_equals_the_base_policy(learner_id: str) -> None:
    cfg = config(learner=learner_id, **PUBLISHED_INIT.get(learner_id, {}))
    env = make_residual_env(cfg, 2)
    learner = make_learner(cfg, env)
    assert env.residual_scale > 0
    base = evaluate(env, no_residual(env), SEEDS)
    untrained = evaluate(env, lambda obs: learner.act(obs, deterministic=True), SEEDS)
    env.close()
    for name, values in base.items():
        assert torch.equal(untrained[name], values), name


def test_residual_env__with_a_scale_of_zero_equals_the_base_policy() -> None:
    env = make_residual_env(config(residual_scale=0.6), 2)
    base = evaluate(env, no_residual(env), SEEDS)
    other = evaluate(env, lambda obs: obs["state"][:, :6].sin(), SEEDS)
    env.residual_scale = 0.0
    scaled = evaluate(env, lambda obs: obs["state"][:, :6].sin(), SEEDS)
    env.close()
    assert not torch.equal(other["return"], base["return"])
    for name, values in base.items():
        assert torch.equal(scaled[name], values), name

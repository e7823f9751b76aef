"""Settings of the base policies `model` and `hybrid` in the contract tests."""

from __future__ import annotations

from pathlib import Path

import tiny_runs

from residual_rl.base_policies.hybrid import HybridCfg
from residual_rl.base_policies.model import ModelCfg


def make_case_model(folder: Path) -> ModelCfg:
    """A run on top of a run on `jacobian-yaw`, which has phases and step counters."""
    inner, outer = folder / "inner", folder / "outer"
    settings = {"total_timesteps": 64, "eval_freq": 0}
    tiny_runs.train(inner, base_policy="jacobian-yaw", **settings)
    tiny_runs.train(outer, base_policy="model", checkpoint=str(inner / "final_model"), **settings)
    return ModelCfg(checkpoint=str(outer / "final_model"))


def make_case_hybrid(folder: Path) -> HybridCfg:
    """A switch from an ensemble to one policy, at a threshold that some episodes reach."""
    settings = ("0.policies=jacobian jacobian-yaw zero", "0.mode=ensemble", "0.settings=0.drag-gain=0.3")
    return HybridCfg(("hybrid", "jacobian-yaw"), settings, "switch", switch_on="goal", switch_below=0.1)

"""Sanity suites of individual ManiSkill tasks, for `residual-rl doctor maniskill --env-id …`."""

from __future__ import annotations

from collections.abc import Iterator

from residual_rl.envs.sanity_checks import Check, MakePolicy
from residual_rl.registry import load
from residual_rl.tasks.maniskill.config import ManiSkillCfg

SUITES: dict[str, str] = {"PickBox-v1": "residual_rl.tasks.maniskill.pick_box.doctor:doctor"}
"""`module:attribute` of `doctor(cfg, quick) -> Iterable[Check]` by ManiSkill's id of the task."""


def doctor(cfg: ManiSkillCfg, quick: bool, make_policy: MakePolicy) -> Iterator[Check]:  # noqa: ARG001
    """Run the checks of the task `cfg.env_id`. A task without a suite gives a single row."""
    if cfg.env_id not in SUITES:
        yield Check(
            "rewards and success", "as documented", f"not checked: there is no suite for {cfg.env_id}", True
        )
        return
    yield from load(SUITES[cfg.env_id])(cfg, quick)

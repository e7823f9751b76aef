"""Defaults of learners that follow from the kind of reward."""

from __future__ import annotations

from typing import Any


def overrides(reward_mode: str) -> dict[str, Any]:
    """Settings of any learner for a `reward_mode`.

    With the sparse reward, an episode that ends at success has its whole reward in the last step. An env's
    own rewards are often positive in each step and largest once the task is solved. Ending an episode at
    success would then be a loss, and a policy would learn to avoid success, unless the value of the final
    observation makes up for it.
    """
    return {"bootstrap_at_done": "always"} if reward_mode == "env" else {}

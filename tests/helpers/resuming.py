"""One check for all learners: saved, loaded and gone on with, it is as if it had never been stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_runs import different

from residual_rl.runs.checkpoint import from_bytes, to_bytes


def check_resuming(
    make: Callable[[int], Any], steps: Callable[[Any, torch.Generator, int], Any], extra_steps: int
) -> None:
    """Three updates, `extra_steps` towards the next, and two updates more: in one learner, and in another
    that got the state of the first.

    Args:
        make: a fresh learner of that seed.
        steps: has the learner act and observe so many steps, which the generator makes.
        extra_steps: how far it is between two updates when it is stopped.
    """
    generator, learner = torch.Generator().manual_seed(0), make(0)

    def update(learner: Any, already: int = 0) -> dict[str, float]:
        steps(learner, generator, learner.num_steps - already)
        metrics: dict[str, float] = learner.update()
        return metrics

    for i in range(3):
        learner.set_progress(i / 10)
        update(learner)
    steps(learner, generator, extra_steps)
    state, data = learner.state_dict(), generator.get_state()
    saved = to_bytes(state, "checkpoint")

    def finish(goes_on: Any) -> dict[str, Any]:
        generator.set_state(data)
        metrics = [update(goes_on, extra_steps), update(goes_on)]
        return {"metrics": metrics, **from_bytes(to_bytes(goes_on.state_dict(), "checkpoint"), "checkpoint")}

    resumed = make(99)
    resumed.load_state_dict(from_bytes(saved, "checkpoint"))
    assert different(finish(resumed), finish(learner)) == []
    assert to_bytes(state, "checkpoint") == saved  # a state is a copy, not a view of what goes on learning

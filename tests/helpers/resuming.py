"""A check for all learners: a restored learner continues exactly like one that was not stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_runs import different

from residual_rl.runs.checkpoint import from_bytes, to_bytes


def check_resuming(
    make: Callable[[int], Any], steps: Callable[[Any, torch.Generator, int], Any], extra_steps: int
) -> None:
    """Do three updates and `extra_steps` steps, save the state, and compare two further updates of the same
    learner and of one that loads the state.

    Args:
        make: constructs a learner with the given seed.
        steps: lets a learner act and observe a number of steps, drawn from the generator.
        extra_steps: number of steps between the last update and the saved state.
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

    def finish(learner: Any) -> dict[str, Any]:
        generator.set_state(data)
        metrics = [update(learner, extra_steps), update(learner)]
        return {"metrics": metrics, **from_bytes(to_bytes(learner.state_dict(), "checkpoint"), "checkpoint")}

    resumed = make(99)
    resumed.load_state_dict(from_bytes(saved, "checkpoint"))
    assert different(finish(resumed), finish(learner)) == []
    assert to_bytes(state, "checkpoint") == saved  # a state is a copy, which further learning does not change

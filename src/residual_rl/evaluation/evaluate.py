"""Evaluation on a fixed list of episode seeds, each run once, for any number of envs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs, Transition

Policy = Callable[[Obs], Tensor]
"""Maps an observation to the residual action [B, A]."""
Episodes = dict[str, Tensor]
"""Metrics of N episodes by name, each [N], in the order of the seeds."""


def no_residual(env: ResidualEnv) -> Policy:
    """The residual policy whose action is always zero."""
    zero = torch.zeros(env.num_envs, env.action_dim, device=env.device)
    return lambda obs: zero  # noqa: ARG005


@torch.no_grad()
def evaluate(
    env: ResidualEnv,
    policy: Policy,
    seeds: Sequence[int],
    on_step: Callable[[Transition, dict[str, Any]], None] | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    stop: Callable[[Episodes], bool] | None = None,
) -> Episodes:
    """Run the episodes of `seeds`, each once.

    Args:
        env: envs that take their seeds from a common queue. Every seed is run to its end, so short episodes
            are not over-represented.
        policy: the residual policy, deterministic.
        seeds: N distinct episode seeds.
        on_step: called after each step with the transition and the env's info.
        on_progress: called with the number of finished episodes and their success rate.
        stop: called with the metrics of the first n episodes, in the order of the seeds, when n has grown:
            whether to leave out the others. In the order of their ends, short episodes would come first.

    Returns:
        Metrics of each episode, or of the first n if `stop` returned True: `success_once`, `success_at_end`,
        `return` (including the residual penalty), `episode_length`, `residual_magnitude` (mean of
        ‖residual_scale · residual_action‖), `action_change` (mean of ‖actionₜ - actionₜ₋₁‖; smaller is
        smoother), `residual_scale` (its mean; only if it is adaptive), and the task's metrics at the end of
        the episode.

    Raises:
        ValueError: a seed occurs twice.
    """
    if len(set(seeds)) != len(seeds):
        raise ValueError("episode seeds must be distinct")
    # Start the first episodes from the queue of seeds.
    row = {int(seed): i for i, seed in enumerate(seeds)}
    env.vec_env.episode_seeds.use_list(seeds)
    env.reset()
    # Sums over the running episode of each env; a last action of NaN marks the first step of an episode.
    done = torch.zeros(len(seeds), dtype=torch.bool)
    first = 0
    episodes: Episodes = {}
    sums = {
        name: torch.zeros(env.num_envs, device=env.device)
        for name in ("return", "residual_magnitude", "action_change", "residual_scale")
    }
    last_action = torch.full((env.num_envs, len(env.vec_env.action_unit)), torch.nan, device=env.device)
    for transition, info in _steps_until(done, env, policy):
        # Add this step.
        change = transition.action - last_action
        sums["return"] += transition.reward
        scale = info["residual_scale"]
        sums["residual_magnitude"] += (scale * transition.residual_action).norm(dim=1)
        sums["action_change"] += change.norm(dim=1).nan_to_num(0.0)
        if isinstance(scale, Tensor):
            sums["residual_scale"] += scale[:, 0]
        if on_step is not None:
            on_step(transition, info)
        last_action = transition.action

        # Store the metrics of the episodes that ended. An episode of n steps has n residual actions and n - 1
        # changes of action.
        ended = info["_final_info"]
        if not ended.any():
            continue
        final = info["final_info"]
        length = final["episode_length"]
        metrics = {
            "success_once": final["success_once"],
            "success_at_end": final["success_at_end"],
            "return": sums["return"],
            "episode_length": length,
            "residual_magnitude": sums["residual_magnitude"] / length,
            "action_change": sums["action_change"] / (length - 1).clamp(min=1),
            **({"residual_scale": sums["residual_scale"] / length} if isinstance(scale, Tensor) else {}),
            **{name: value for name, value in final.items() if name in info["task_metrics"]},
        }
        for env_id in ended.nonzero().flatten().tolist():
            episode = row[int(final["seed"][env_id])]
            done[episode] = True
            for name, values in metrics.items():
                episodes.setdefault(name, torch.zeros(len(seeds)))[episode] = float(values[env_id])

        # Reset the sums of the envs whose episode ended.
        sums = {name: value.masked_fill(ended, 0.0) for name, value in sums.items()}
        last_action = torch.where(ended[:, None], torch.nan, last_action)
        if on_progress is not None:
            on_progress(int(done.sum()), float(episodes["success_once"][done].mean()))

        # Stop once the first episodes tell enough.
        before, first = first, int(done.long().cumprod(0).sum())
        if stop is not None and first > before:
            head = {name: values[:first] for name, values in episodes.items()}
            if stop(head):
                return head
    return episodes


def _steps_until(
    done: Tensor, env: ResidualEnv, policy: Policy
) -> Iterator[tuple[Transition, dict[str, Any]]]:
    """Step the env until all of `done` [N] is true."""
    while not done.all():
        yield from env.steps(policy(env.obs))

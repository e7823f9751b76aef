"""Episodes of a base policy alone, recorded step by step or under a disturbance, for the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_rl.envs.spaces import is_image
from residual_rl.errors import ConfigError
from residual_rl.evaluation.disturbances import Disturbance
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Transition

BOUND = 0.999
"""A base action of this absolute value or more lies at the bounds."""
OnEnded = Callable[[int], None]
"""Called with the number of finished episodes."""


@dataclass(frozen=True)
class Episode:
    """An episode of T steps without disturbance."""

    success: bool
    terminated: bool
    obs: Tensor
    """[T, O]: vector observations before each action."""
    at_bounds: Tensor
    """[T]: share of the entries of the base action that lie at the bounds of the action space."""
    changes: Tensor
    """[T - 1]: ‖actionₜ - actionₜ₋₁‖."""
    disagreement: Tensor | None
    """[T]: the uncertainty of the base policy; None if it has none."""
    largest_reward: float
    """The largest |reward| of a step."""

    def __len__(self) -> int:
        return len(self.obs)


@torch.no_grad()
def record_episodes(
    env: ResidualEnv, seeds: Sequence[int], obs_keys: Sequence[str], on_ended: OnEnded
) -> list[Episode]:
    """Run the episodes of `seeds` to their ends, and return them in this order.

    Args:
        env: envs with the base policy; its step hook is left alone.
        seeds: episode seeds.
        obs_keys: observations to record, which may include `base_action`; images and unknown ones are left
            out.
        on_ended: called when episodes have ended.
    """
    spaces = env.observation_space.spaces
    keys = [key for key in obs_keys if key in spaces and not is_image(spaces[key])]
    episodes: list[Episode] = []
    for first in range(0, len(seeds), env.num_envs):
        batch = list(seeds[first : first + env.num_envs])
        obs, actions, uncertainties, rewards = [], [], [], []
        length = torch.zeros(len(batch), dtype=torch.int64)
        success, terminated = length.bool(), length.bool()
        for uncertainty, transition, ended in _steps(env, batch, env.vec_env.max_episode_steps):
            # record this step of all envs, those without an episode included
            vectors = [transition.obs[key].flatten(1).float() for key in keys]
            obs.append(torch.cat([transition.base_action[:, :0], *vectors], 1))
            actions.append(transition.base_action)
            uncertainties.append(uncertainty)
            rewards.append(transition.reward.abs())
            # the outcomes of the episodes that ended
            if ended.any():
                length[ended] = len(obs)
                assert transition.success is not None
                success[ended] = transition.success[: len(batch)].cpu()[ended]
                terminated[ended] = transition.terminated[: len(batch)].cpu()[ended]
                on_ended(first + int((length > 0).sum()))
        # cut the recording into episodes
        recorded = (obs, actions, uncertainties, rewards)
        states, action, spread, reward = (torch.stack(steps, 1).cpu() for steps in recorded)
        for env_id, T in enumerate(length.tolist()):
            episode = action[env_id, :T]
            episodes.append(
                Episode(
                    success=bool(success[env_id]),
                    terminated=bool(terminated[env_id]),
                    obs=states[env_id, :T],
                    at_bounds=(episode.abs() >= BOUND).float().mean(1),
                    changes=(episode[1:] - episode[:-1]).norm(dim=1),
                    disagreement=spread[env_id, :T] if env.base_policy.has_uncertainty else None,
                    largest_reward=float(reward[env_id, :T].max()),
                )
            )
    return episodes


@torch.no_grad()
def disturbed_successes(
    env: ResidualEnv, seeds: Sequence[int], disturbance: Disturbance, max_steps: int, on_ended: OnEnded
) -> list[bool]:
    """Whether each episode of `seeds` succeeds within `max_steps` under the `disturbance`."""
    outcomes: list[bool] = []
    env.step_hook = disturbance
    try:
        for first in range(0, len(seeds), env.num_envs):
            batch = list(seeds[first : first + env.num_envs])
            disturbance.restart(batch)
            success = torch.zeros(len(batch), dtype=torch.bool)
            for _, transition, ended in _steps(env, batch, max_steps):
                if ended.any():
                    assert transition.success is not None
                    success |= transition.success[: len(batch)].cpu()
            outcomes += success.tolist()
            on_ended(len(outcomes))
    finally:
        env.step_hook = None
    return outcomes


def _steps(
    env: ResidualEnv, seeds: Sequence[int], max_steps: int
) -> Iterator[tuple[Tensor, Transition, Tensor]]:
    """Begin the n episodes of `seeds` in the first n envs, and step until all have ended, at most `max_steps`
    times.

    Yields the base policy's uncertainty [B] before each step, the transition, and which of the episodes ended
    [n] bool. Raises `ConfigError` if the envs have other episodes.
    """
    env.vec_env.episode_seeds.use_list(seeds)
    env.reset()
    policy = no_residual(env)
    for _ in range(max_steps):
        uncertainty = env.base_policy.uncertainty
        transition, info = env.step(policy(env.obs))
        ended = info["_final_info"][: len(seeds)].cpu()
        for env_id in ended.nonzero().flatten().tolist():
            if int(info["final_info"]["seed"][env_id]) != seeds[env_id]:
                raise ConfigError(
                    "this vec_env does not draw its episode seeds in order, so its episodes cannot be "
                    "identified"
                )
        yield uncertainty, transition, ended
        if not env.vec_env.active.any():
            return

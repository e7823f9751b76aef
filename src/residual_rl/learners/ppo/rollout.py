"""Storage for the steps that PPO collects between two updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from residual_rl.learners.common.networks import Perception

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace


def make_rollout(
    shape: tuple[int, int],
    obs_space: ObsSpace,
    policy: Perception,
    critic_perception: Perception,
    action_dim: int,
    conditional_noise: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Allocate the rollout as tensors [T, B, …] by name, with images as uint8.

    Args:
        shape: (T, B).
        obs_space: space of a single env's observations.
        policy: the observations that the policy reads.
        critic_perception: the observations that the critic reads; `policy` if they are the same.
        action_dim: A.
        conditional_noise: also store the conditional mean and standard deviation of the noise.
        device: device of the tensors.
    """
    spaces: Any = getattr(obs_space, "spaces", obs_space)

    def storage(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, *sizes, dtype=dtype, device=device)

    # Observations; only the critic reads the next ones
    critic_obs_dim = critic_perception.obs_vector.size
    rollout = {"obs": storage(policy.obs_vector.size), "next_obs": storage(critic_obs_dim)}
    if critic_perception is not policy:
        rollout["critic_obs"] = storage(critic_obs_dim)
    image_keys = tuple(dict.fromkeys(policy.image_keys + critic_perception.image_keys))
    for prefix, keys in (("image.", image_keys), ("next_image.", critic_perception.image_keys)):
        rollout |= {prefix + key: storage(*spaces[key].shape, dtype=torch.uint8) for key in keys}
    # Actions, rewards and ends of episodes
    rollout |= {"raw_action": storage(action_dim), "noise": storage(action_dim)}
    rollout |= {
        "reward": storage(),
        "terminated": storage(dtype=torch.bool),
        "ended": storage(dtype=torch.bool),
    }
    if conditional_noise:
        rollout |= {"noise_shift": storage(action_dim), "noise_spread": storage(1)}
    return rollout

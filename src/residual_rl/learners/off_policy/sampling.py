"""Sampling of batches from the replay buffer and the demonstrations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from residual_rl.errors import ConfigError
from residual_rl.learners.off_policy.batch import Batch, Sample
from residual_rl.learners.off_policy.config import OffPolicyCfg
from residual_rl.learners.off_policy.replay_buffer import ReplayBuffer


def sample_batches(
    cfg: OffPolicyCfg,
    buffer: ReplayBuffer,
    demonstrations: ReplayBuffer | None,
    normalize: Callable[[Tensor], Tensor],
    count: int,
    generator: torch.Generator,
) -> Batch:
    """Sample the batches of `count` gradient steps, with the noise and the random target critics of each.

    Args:
        cfg: settings of the learner.
        buffer: the replay buffer.
        demonstrations: the source of `cfg.demo_batch_size` transitions per batch. While it is empty, the
            replay buffer gives these too.
        normalize: normalises observation vectors [..., O].
        count: number of gradient steps.
        generator: generator of the samples, on the device of the buffer.

    Returns:
        The fields of `Batch` with a leading dimension of `count`.

    Raises:
        ConfigError: the settings require demonstrations, but there are none.
    """
    num_demos = cfg.demo_batch_size
    if demonstrations is not None and len(demonstrations) == 0:
        num_demos = 0
    num_own = cfg.batch_size - num_demos
    # Transitions from the replay buffer and the demonstrations
    arguments = cfg.n_step, cfg.gamma, cfg.bootstrap_at_done, generator
    columns = [column.unflatten(0, (count, num_own)) for column in buffer.sample(count * num_own, *arguments)]
    if num_demos:
        if demonstrations is None:
            raise ConfigError(f"demo_share is {cfg.demo_share}, but there are no demonstrations")
        demos = demonstrations.sample(count * num_demos, *arguments)
        demo_columns = [column.unflatten(0, (count, num_demos)) for column in demos]
        columns = [torch.cat(pair, 1) for pair in zip(columns, demo_columns, strict=True)]
    sample = Sample(*columns)
    # Noise and target critics
    noise = torch.randn(2, *sample.action.shape, generator=generator, device=buffer.device)
    ones = torch.ones_like(sample.discount)
    order = torch.rand(count, cfg.num_critics, generator=generator, device=buffer.device).argsort(1)
    return Batch(
        obs=normalize(sample.obs),
        base_action=sample.base_action,
        critic_action=sample.action if cfg.critic_input == "sum" else sample.residual_action,
        scale=sample.scale,
        n_step_return=sample.n_step_return,
        discount=sample.discount,
        next_obs=normalize(sample.next_obs),
        next_base_action=sample.next_base_action,
        next_scale=sample.next_scale,
        target_noise=noise[0],
        actor_noise=noise[1],
        share=ones,
        next_share=ones,
        critic_ids=order[:, : cfg.num_target_critics],
    )

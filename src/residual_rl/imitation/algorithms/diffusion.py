"""Diffusion Policy: a network predicts the noise in noised actions, which the sampler removes in a few
steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from residual_rl.errors import MissingDependencyError
from residual_rl.imitation.algorithms.base import Algorithm, Network, masked_mse
from residual_rl.imitation.networks.conditional_unet import unet_of


class Diffusion(Algorithm):
    """Noise (epsilon) prediction with a squared-cosine schedule; DDPM for training, deterministic DDIM for
    sampling.

    Source: Chi et al., "Diffusion Policy: visuomotor policy learning via action diffusion", 2023, based on Ho
    et al., "Denoising diffusion probabilistic models", 2020, and Song et al., "Denoising diffusion implicit
    models", 2021. The schedulers are those of `diffusers`. Estimates of the clean actions are clipped to [-1,
    1].
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: int,
        time_dim: int,
        diffusion_steps: int,
        layout: str = "own",
    ):
        self.channels = tuple(channels)
        self.kernel_size = kernel_size
        self.time_dim = time_dim
        self.diffusion_steps = diffusion_steps
        self._unet = unet_of(layout)
        ddpm, ddim = _schedulers()
        schedule = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True}
        self._ddpm = ddpm(num_train_timesteps=diffusion_steps, **schedule)
        self._ddim = ddim(num_train_timesteps=diffusion_steps, **schedule)

    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:
        return self._unet(chunk_size, action_dim, obs_dim, self.channels, self.kernel_size, self.time_dim)

    def loss(
        self, network: Network, obs: Tensor, actions: Tensor, valid: Tensor, generator: Generator
    ) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        time = torch.randint(
            self.diffusion_steps, (len(actions),), generator=generator, device=actions.device
        )
        noised = self._ddpm.add_noise(actions, noise, time)
        return masked_mse(network(noised, time, obs), noise, valid)

    def sample(self, network: Network, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        self._ddim.set_timesteps(sampling_steps)
        x = noise
        for time in self._ddim.timesteps:
            epsilon = network(x, time.to(x.device).expand(len(x)), obs)
            x = self._ddim.step(epsilon, time, x).prev_sample
        return x


def _schedulers() -> tuple[Any, Any]:
    """The classes of the two schedulers. Only their modules are imported, as importing all of diffusers takes
    seconds."""
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError as error:
        raise MissingDependencyError(
            "diffusers", "install it with `pip install residual-rl[diffusion]`"
        ) from error
    return DDPMScheduler, DDIMScheduler

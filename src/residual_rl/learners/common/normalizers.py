"""Normalisation of observations and rewards by running statistics, with static shapes and no host
synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from residual_rl.errors import NonFiniteError
from residual_rl.learners.common.returns import discounted_sums


class RunningMeanStd(nn.Module):
    """Normalises by the running mean and variance (float64, per element) of all samples so far, and clips.

    Statistics are merged as in Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979. They start at mean 0 and variance 1 with a weight of 1e-4 samples, as
    in Stable-Baselines3's `VecNormalize`; the results are equal.

    Args:
        shape: shape of a sample.
        name: name of the samples in errors.
        clip: bound of normalised samples.
        device: device of the statistics.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    _shift: Tensor
    _scale: Tensor

    epsilon = 1e-8

    def __init__(
        self,
        shape: tuple[int, ...],
        name: str = "observation",
        clip: float = 10.0,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.name = name
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64, device=device))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64, device=device))
        self.register_buffer("_shift", torch.zeros(shape, device=device), persistent=False)
        self.register_buffer("_scale", torch.ones(shape, device=device), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._refresh())
        self._refresh()

    def update(self, batch: Tensor) -> None:
        """Merge the samples `batch` [..., *shape] into the statistics.

        Raises `NonFiniteError`, without any change, if a sample is not finite.
        """
        samples = batch.reshape(-1, *self.mean.shape).double()
        var, mean = torch.var_mean(samples, 0, correction=0)
        if not torch.isfinite(var).all():
            where = (~torch.isfinite(var)).flatten().nonzero().flatten().tolist()
            raise NonFiniteError(f"{self.name} is not finite in the collected batch, element(s) {where[:8]}")
        n = samples.shape[0]
        delta = mean - self.mean
        total = self.count + n
        self.mean.add_(delta * (n / total))
        self.var.mul_(self.count / total).add_(
            var * (n / total) + delta.square() * (self.count * n / total.square())
        )
        self.count.copy_(total)
        self._refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., *shape]: `clip((x - mean) / sqrt(var + epsilon), -clip, clip)`."""
        return (x - self._shift).mul_(self._scale).clamp_(-self.clip, self.clip)

    def denormalized(self, x: Tensor, index: int) -> Tensor:
        """Element `index` [...] of the vectors that were normalised as `x` [..., n], within the clip."""
        return x[..., index] / self._scale[index] + self._shift[index]

    def scale_only(self, x: Tensor) -> Tensor:
        """Divide by the standard deviation and clip, without centring."""
        return (x * self._scale).clamp_(-self.clip, self.clip)

    def _refresh(self) -> None:
        self._shift.copy_(self.mean)
        self._scale.copy_((self.var + self.epsilon).rsqrt())


class RewardScaler(nn.Module):
    """Scales rewards by the standard deviation of the running discounted return of each env, as
    `VecNormalize` does.

    Source: Engstrom et al., "Implementation Matters in Deep Policy Gradients", 2020, section 3. Deviation:
    the statistics are updated with a whole rollout before it is scaled, instead of at each step.

    Args:
        num_envs: B.
        gamma: discount per step.
        clip: bound of scaled rewards.
        device: device of the statistics.
    """

    running_return: Tensor

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0, device: torch.device | None = None):
        super().__init__()
        self.gamma = gamma
        self.statistics = RunningMeanStd((), name="reward", clip=clip, device=device)
        self.register_buffer("running_return", torch.zeros(num_envs, dtype=torch.float64, device=device))

    def forward(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Update the statistics with `reward` [T, B] and `ended` [T, B] (bool), and return the scaled reward
        [T, B].

        Raises `NonFiniteError` if a reward is not finite.
        """
        sums, carried = discounted_sums(reward.double(), ended, self.running_return, self.gamma)
        self.statistics.update(sums)
        self.running_return.copy_(carried)
        return self.statistics.scale_only(reward)

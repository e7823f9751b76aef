"""Running statistics that normalise observations and scale rewards. Static shapes, no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from residual_rl.errors import NonFiniteError
from residual_rl.learners.common.returns import discounted_sums


class RunningMeanStd(nn.Module):
    """Mean and variance of all samples seen, per element, in float64; normalises with them and clips.

    Merging is that of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    1979. Fresh statistics are mean 0 and variance 1 with the weight of 1e-4 samples, as in Stable-Baselines3's
    `VecNormalize`, with whose numbers it agrees.
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
        self.name, self.clip = name, clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64, device=device))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64, device=device))
        self.register_buffer("_shift", torch.zeros(shape, device=device), persistent=False)
        self.register_buffer("_scale", torch.ones(shape, device=device), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module._refresh())
        self._refresh()

    def update(self, batch: Tensor) -> None:
        """Merge the samples `batch` [..., *shape] into the statistics. Raises `NonFiniteError` and changes nothing if one is not finite."""
        samples = batch.reshape(-1, *self.mean.shape).double()
        var, mean = torch.var_mean(samples, 0, correction=0)
        if not torch.isfinite(var).all():
            where = (~torch.isfinite(var)).flatten().nonzero().flatten().tolist()
            raise NonFiniteError(f"{self.name} is not finite in the collected batch, element(s) {where[:8]}")
        n, delta = samples.shape[0], mean - self.mean
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

    def scale_only(self, x: Tensor) -> Tensor:
        """Divide by the standard deviation and clip, without centring."""
        return (x * self._scale).clamp_(-self.clip, self.clip)

    def _refresh(self) -> None:
        self._shift.copy_(self.mean)
        self._scale.copy_((self.var + self.epsilon).rsqrt())


class RewardScaler(nn.Module):
    """Scales rewards by the standard deviation of the running discounted return of each env, as `VecNormalize` does.

    Source: Engstrom et al., "Implementation Matters in Deep Policy Gradients", 2020, section 3. Deviation: the
    statistics take in a whole rollout, then scale it, instead of both at each step.
    """

    running_return: Tensor

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0, device: torch.device | None = None):
        super().__init__()
        self.gamma = gamma
        self.statistics = RunningMeanStd((), name="reward", clip=clip, device=device)
        self.register_buffer("running_return", torch.zeros(num_envs, dtype=torch.float64, device=device))

    def forward(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Take in `reward` [T, B] with `ended` [T, B] (bool) and return it scaled, [T, B]. Raises `NonFiniteError`."""
        sums, carried = discounted_sums(reward.double(), ended, self.running_return, self.gamma)
        self.statistics.update(sums)
        self.running_return.copy_(carried)
        return self.statistics.scale_only(reward)

"""Actors of the off-policy learners, whose residual actions are squashed into [-1, 1] by tanh."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from residual_rl.errors import UnknownNameError
from residual_rl.learners.common.ema import ActorEMA
from residual_rl.learners.common.networks import MLP, ObsVector
from residual_rl.learners.common.normalizers import RunningMeanStd
from residual_rl.learners.off_policy.config import OffPolicyCfg
from residual_rl.types import Obs

if TYPE_CHECKING:
    from residual_rl.learners.common.networks import ObsSpace

_LOG_2 = math.log(2.0)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def default_obs_keys(space: ObsSpace) -> tuple[str, ...]:  # noqa: ARG001
    """The default observations of actor and critics. The base action is a setting of its own."""
    return ("state",)


class NormedMLP(MLP):
    """An MLP with optional layer normalisation (without learned gain and offset) and an optional nonzero last
    layer.

    Args:
        sizes: sizes of the input, the hidden layers and the output.
        activation: a name in `networks.ACTIVATIONS`.
        layer_norm: normalise hidden layers.
        output_init: gain of the orthogonal initialisation of the last layer; 0 initialises it to zero.
        generator: generator of the weights (CPU).
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str,
        layer_norm: bool,
        output_init: float,
        generator: torch.Generator,
    ):
        super().__init__(sizes, activation, generator)
        self._layer_norm = layer_norm
        if output_init > 0.0:
            nn.init.orthogonal_(self._last.weight, output_init, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._hidden:
            x = F.linear(x, layer.weight, layer.bias)
            if self._layer_norm:
                x = F.layer_norm(x, x.shape[-1:])
            x = self.activation(x)
        return F.linear(x, self._last.weight, self._last.bias)


class DeterministicActor(nn.Module):
    """A deterministic residual policy, for training and deployment.

    The action is the tanh of an MLP of the normalised observation and, depending on `cfg.actor_input`, of the
    base action. With `output_init` 0 it is exactly 0 at initialisation.

    Args:
        cfg: the learner's settings.
        obs_space: see `networks.ObsVector`.
        action_dim: A.
        generator: generator of the weights (CPU).
        device: device to compute on.
    """

    unread_keys: tuple[str, ...] = ()
    """Observations at the end of the observation vector that actor and critics do not read."""

    def __init__(
        self,
        cfg: OffPolicyCfg,
        obs_space: ObsSpace,
        action_dim: int,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        space = getattr(obs_space, "spaces", obs_space)
        if "base_action" not in space:
            raise UnknownNameError("observation", "base_action", space)
        self.device = device
        self.action_dim = action_dim
        keys = default_obs_keys(obs_space) if cfg.obs_keys is None else cfg.obs_keys
        self.obs_vector = ObsVector((*keys, *self.unread_keys), obs_space)
        self.num_read = self.obs_vector.size - ObsVector(self.unread_keys, obs_space).size
        """Size of the part of the observation vector that actor and critics read."""
        self.normalizer = RunningMeanStd((self.obs_vector.size,)) if cfg.normalize_obs else None
        self._reads_base_action = cfg.actor_input == "obs_base_action"
        inputs = self.num_read + action_dim * self._reads_base_action
        sizes = (inputs, *cfg.hidden_sizes, self._outputs(action_dim))
        self.net = NormedMLP(sizes, cfg.activation, cfg.actor_layer_norm, cfg.output_init, generator)
        self.to(device)

    def _outputs(self, action_dim: int) -> int:
        return action_dim

    def normalize(self, vector: Tensor) -> Tensor:
        """Normalise observation vectors [..., O]."""
        return self.normalizer(vector) if self.normalizer is not None else vector

    def outputs(self, obs: Tensor, base_action: Tensor) -> Tensor:
        """Raw network outputs for normalised observation vectors [b, O] and base actions [b, A]."""
        obs = obs[..., : self.num_read]
        return self.net(torch.cat([obs, base_action], -1) if self._reads_base_action else obs)

    def mean(self, obs: Tensor, base_action: Tensor) -> Tensor:
        """The deterministic residual action [b, A] for normalised observation vectors [b, O] and base actions
        [b, A]."""
        return self.outputs(obs, base_action)[..., : self.action_dim].tanh()

    def joined(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Normalised observation vector [B, O] and base action [B, A] of named observations."""
        dtype = next(self.net.parameters()).dtype
        vector = self.obs_vector(obs, self.device).to(dtype)
        return self.normalize(vector), obs["base_action"].to(self.device, dtype)

    @torch.no_grad()
    def act(self, obs: Obs) -> Tensor:
        """The deterministic residual action [B, A] in [-1, 1]."""
        return self.mean(*self.joined(obs))


class Draw(NamedTuple):
    """A sample from a squashed Gaussian."""

    action: Tensor
    """[b, A] in [-1, 1]."""
    log_prob: Tensor
    """[b]: log-density of the action."""
    std: Tensor
    """[b, A]: standard deviation before the tanh."""


class GaussianActor(DeterministicActor):
    """A Gaussian whose mean and standard deviation depend on the observation, squashed by tanh.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, appendix C. The logarithm
    of the standard deviation is bounded to `log_std_range` by another tanh, with an offset such that a
    network output of 0 gives `init_std`.

    Args: as those of `DeterministicActor`, and `init_std` and `log_std_range` of `SACCfg`.
    """

    def __init__(
        self,
        cfg: OffPolicyCfg,
        obs_space: ObsSpace,
        action_dim: int,
        generator: torch.Generator,
        device: torch.device,
        init_std: float,
        log_std_range: tuple[float, float],
    ):
        super().__init__(cfg, obs_space, action_dim, generator, device)
        low, high = log_std_range
        self._middle = 0.5 * (low + high)
        self._half = 0.5 * (high - low)
        self._offset = math.atanh((math.log(init_std) - self._middle) / self._half)

    def _outputs(self, action_dim: int) -> int:
        return 2 * action_dim

    def gaussian(self, obs: Tensor, base_action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation, [b, A] each, before the tanh."""
        mean, raw = self.outputs(obs, base_action).chunk(2, -1)
        return mean, self._middle + self._half * (raw + self._offset).tanh()

    def draw(self, obs: Tensor, base_action: Tensor, noise: Tensor) -> Draw:
        """The residual action for the standard normal `noise` [b, A]."""
        mean, log_std = self.gaussian(obs, base_action)
        std = log_std.exp()
        raw = torch.addcmul(mean, std, noise)
        # log(1 - tanh(x)²) = 2 (log 2 - x - softplus(-2x)), which remains accurate where tanh(x) rounds to 1
        squash = 2.0 * (_LOG_2 - raw - F.softplus(-2.0 * raw))
        log_prob = (-0.5 * noise.square() - log_std - _HALF_LOG_2PI - squash).sum(-1)
        return Draw(raw.tanh(), log_prob, std)


def averaged(policy: DeterministicActor, ema: ActorEMA) -> DeterministicActor:
    """A copy of `policy` with the weights of `ema`; it shares everything else with `policy`, such as the
    observation statistics."""
    deployed = copy.deepcopy(policy).requires_grad_(False)
    for name, module in policy.named_children():
        setattr(deployed, name, module)
    deployed.net = ema.module
    return deployed

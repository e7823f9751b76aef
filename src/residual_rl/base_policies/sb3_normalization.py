"""Normalised observations of Stable-Baselines3 models, which keep their statistics in a file of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.errors import ConfigError

VECTOR = ""
"""Key of an observation that is a vector instead of a dict."""
_NUM_QUERIES = 50
"""Queries after which the observations are compared with those of training."""
_MAX_FACTOR = 5.0
"""Allowed ratio between the scales of observations here and in training."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObsStatistics:
    """Statistics with which `VecNormalize` normalises observations, by key."""

    mean: Mapping[str, Tensor]
    var: Mapping[str, Tensor]
    clip: float
    epsilon: float

    @classmethod
    def of(cls, vec_normalize: Any, space: Any, name: str) -> ObsStatistics:
        """Those of a `VecNormalize`. Raises `ConfigError` if they do not fit the model's observation
        `space`."""
        rms = vec_normalize.obs_rms if vec_normalize.norm_obs else {}
        rms = rms if isinstance(rms, dict) else {VECTOR: rms}
        for key, statistics in rms.items():
            wanted = space.shape if key == VECTOR else getattr(space.get(key), "shape", None)
            if statistics.mean.shape != wanted:
                raise ConfigError(
                    f"{name} has statistics of {key or 'observations'} of shape {statistics.mean.shape}; "
                    f"the model observes {wanted}"
                )
        return cls(
            {key: torch.from_numpy(np.array(value.mean, np.float64)) for key, value in rms.items()},
            {key: torch.from_numpy(np.array(value.var, np.float64)) for key, value in rms.items()},
            vec_normalize.clip_obs,
            vec_normalize.epsilon,
        )

    def normalize(self, key: str, value: Tensor) -> Tensor:
        """A batch of observations, normalised in float64 if there are statistics of `key`."""
        if key not in self.mean:
            return value
        mean, var = self.mean[key], self.var[key]
        return ((value.double() - mean) / torch.sqrt(var + self.epsilon)).clamp(-self.clip, self.clip)


class ScaleCheck:
    """Warns once if the vectors that a network is given have another scale than in training.

    Args:
        last_obs: the last observations of training [N, O].
        name: name of the model.
    """

    def __init__(self, last_obs: Any, name: str):
        self._trained = torch.from_numpy(np.asarray(last_obs, np.float64)).square().mean(0).sqrt()
        self._name = name
        self._sum = torch.zeros_like(self._trained)
        self._rows = self._queries = 0

    def update(self, obs: Tensor) -> None:
        """Take a batch of observations [b, O] into account."""
        if self._queries >= _NUM_QUERIES or not obs.any():  # zeros are the probe's
            return
        self._sum += obs.detach().double().cpu().square().sum(0)
        self._rows += len(obs)
        self._queries += 1
        if self._queries < _NUM_QUERIES:
            return
        here = (self._sum / self._rows).sqrt()
        known = (here > 0) & (self._trained > 0)
        ratio = (here / self._trained)[known]
        factor = float(torch.maximum(ratio, 1 / ratio).median()) if len(ratio) else 1.0
        if factor > _MAX_FACTOR or float(here.max()) > 100.0 * float(self._trained.max()):
            _log.warning(
                "the observations of %s are far from those of its training (their scales differ by a factor "
                "of %.3g in the median): if it was trained with VecNormalize, give its statistics "
                "with --vec-normalize FILE",
                self._name,
                factor,
            )


def prepare_observations(policy: Any, vec_normalize: Any, name: str) -> None:
    """Let a policy of `trusted.read_sb3_policy` normalise its observations, and warn if they are not what it
    was trained on.

    Args:
        policy: the policy; its inputs are changed in place.
        vec_normalize: the result of `trusted.read_vec_normalize`; None without it.
        name: name of the model in messages.
    """
    last, original = policy.training_obs
    statistics = None
    if vec_normalize is not None:
        statistics = ObsStatistics.of(vec_normalize, policy.observation_space, name)
    elif original is not None and hasattr(policy, "value_net"):
        # an on-policy model has original observations only if it was trained with VecNormalize
        _log.warning(
            "%s was trained with VecNormalize: unless only rewards were normalised, give its statistics with "
            "--vec-normalize FILE",
            name,
        )
    is_vector = isinstance(last, np.ndarray) and last.ndim == 2
    check = ScaleCheck(last, name) if is_vector else None

    def change(_: Any, inputs: tuple[Any]) -> tuple[Any]:
        (obs,) = inputs
        if statistics is not None:
            named = obs if isinstance(obs, dict) else {VECTOR: obs}
            named = {key: statistics.normalize(key, value) for key, value in named.items()}
            obs = named if isinstance(obs, dict) else named[VECTOR]
        if check is not None and isinstance(obs, Tensor):
            check.update(obs)
        return (obs,)

    extractor = getattr(policy, "pi_features_extractor", None) or policy.actor.features_extractor
    extractor.register_forward_pre_hook(change)

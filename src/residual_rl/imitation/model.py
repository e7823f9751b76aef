"""An imitation policy as a file: its settings, the normalisation statistics, and the averaged weights of its network."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.algorithms.base import Algorithm
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ObsPadding
from residual_rl.registry import load as load_reference
from residual_rl.runs import checkpoint
from residual_rl.types import State
from residual_rl.utils.module_state import load_module_state, module_state

MODEL_FILE = "model.safetensors"
"""The best model, in the folder of a training."""
LAST_FILE = "last.safetensors"
"""The model at the end of training, or where it was interrupted."""
MODEL_VERSION = 2
"""Since 2 a model may pad observations, predict actions of the past, and have a U-Net of another layout."""
_VERSIONS = (1, MODEL_VERSION)

ALGORITHMS = {
    "bc": "residual_rl.imitation.algorithms.bc:BC",
    "diffusion": "residual_rl.imitation.algorithms.diffusion:Diffusion",
    "flow": "residual_rl.imitation.algorithms.flow:Flow",
}


@dataclass(frozen=True)
class ModelSettings:
    """What an imitation policy is, besides its weights."""

    algo: str
    network: dict[str, Any]
    """Settings of the algorithm and its network: what its class is made with."""
    obs_keys: tuple[str, ...]
    """Named observations that it sees, joined in this order."""
    obs_shapes: dict[str, tuple[int, ...]]
    """Their shapes, without the batch."""
    action_dim: int
    num_obs_steps: int
    chunk_size: int
    """Actions that it gives, from the present step on."""
    num_action_steps: int
    sampling_steps: int
    task_id: str
    """Task of the demonstrations."""
    task_settings: dict[str, Any] = field(default_factory=dict)
    """Its settings there, as plain values."""
    action_unit: tuple[float, ...] | None = None
    """What an action of 1 means there, in `action_unit_name`; None where it is not known."""
    action_unit_name: str | None = None
    num_past_actions: int = 0
    """Actions that its network predicts besides, of the steps before the present one; nobody executes them."""
    obs_padding: ObsPadding | None = None
    """Values that it puts into each observation vector before it looks at it."""

    @property
    def obs_size(self) -> int:
        """O: size of a step's observation vector, padding included."""
        padding = 0 if self.obs_padding is None else len(self.obs_padding.values)
        return sum(math.prod(self.obs_shapes[key]) for key in self.obs_keys) + padding

    @property
    def obs_dim(self) -> int:
        """H · O: size of the flat observation window."""
        return self.num_obs_steps * self.obs_size

    @property
    def num_predicted_actions(self) -> int:
        """P + K: actions that its network predicts, those of the past included."""
        return self.num_past_actions + self.chunk_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSettings:
        """What `to_dict` gave; version 1 had no past actions and no padding."""
        data = {"num_past_actions": 0, "obs_padding": None, **data}
        values = {f.name: data[f.name] for f in fields(cls)}
        values["obs_keys"] = tuple(values["obs_keys"])
        values["obs_shapes"] = {key: tuple(shape) for key, shape in values["obs_shapes"].items()}
        values["action_unit"] = None if values["action_unit"] is None else tuple(values["action_unit"])
        padding = values["obs_padding"]
        values["obs_padding"] = None if padding is None else ObsPadding(padding["index"], tuple(padding["values"]))
        return cls(**values)


class ImitationModel:
    """A policy that gives chunks of actions for windows of observations.

    Args:
        settings: what it is.
        statistics: of the demonstrations; without them there is no model.
        weights: of its network, by name; None makes fresh ones from torch's global generator.
        step: gradient steps before.
        name: how errors call it.
    """

    def __init__(
        self, settings: ModelSettings, statistics: Statistics, weights: State | None = None, step: int = 0, name: str = "the model"
    ):
        self.settings, self.statistics, self.step, self.name = settings, statistics, step, name
        self.algorithm = make_algorithm(settings.algo, settings.network)
        self.network: nn.Module = self.algorithm.make_network(settings.obs_dim, settings.num_predicted_actions, settings.action_dim)
        if weights is not None:
            load_module_state(self.network, weights, name)
        self.network.requires_grad_(False).eval()

    def to(self, device: torch.device, dtype: torch.dtype) -> ImitationModel:
        """Compute on `device` in `dtype` from now on."""
        self.network.to(device, dtype)
        self.statistics = self.statistics.to(device, dtype)
        return self

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor, sampling_steps: int | None = None) -> Tensor:
        """Actions [b, K, A] for windows of observations `obs` [b, H, O], the oldest first and not padded, and standard normal `noise`
        [b, P + K, A]; all of them on the model's device and of its type."""
        settings = self.settings
        padded = obs if settings.obs_padding is None else settings.obs_padding(obs)
        normalized = self.statistics.normalize_obs(padded).flatten(1)
        actions = self.algorithm.sample(self.network, normalized, noise, sampling_steps or settings.sampling_steps)
        return self.statistics.restore_actions(actions[:, settings.num_past_actions :])

    def save(self, path: Path) -> None:
        """Write it to `path`, atomically. Raises like `checkpoint.save`."""
        state = {
            "model_version": MODEL_VERSION,
            "settings": self.settings.to_dict(),
            "statistics": self.statistics.state_dict(),
            "weights": module_state(self.network),
            "step": self.step,
        }
        checkpoint.save(path, state, "model")

    @classmethod
    def load(cls, path: Path | str) -> ImitationModel:
        """The model of a file, or the best one of a training's folder. Raises `CheckpointError` naming the file and what is wrong."""
        file = find_model(Path(path))
        state = checkpoint.load(file, "model")
        version = state.get("model_version")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise CheckpointError(f"{file} is an imitation model of version {version}; this release knows versions {known}")
        try:
            settings = ModelSettings.from_dict(state["settings"])
            statistics = Statistics.from_state(state.get("statistics"), settings.obs_size, settings.action_dim, str(file))
            return cls(settings, statistics, state["weights"], state["step"], str(file))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{file} holds settings that cannot be read here: {type(error).__name__}: {error}") from error


def find_model(path: Path) -> Path:
    """The model file that `path` means. Raises `CheckpointError` where there is none."""
    if not path.is_dir():
        return path
    file = path / MODEL_FILE
    if not file.is_file():
        others = sorted(p.name for p in path.glob("*.safetensors"))
        has = f"it has {', '.join(others)}: name one of them" if others else "it is no folder of `residual-rl imitate`"
        raise CheckpointError(f"{path} has no {MODEL_FILE}; {has}")
    return file


def make_algorithm(algo: str, network: dict[str, Any]) -> Algorithm:
    """The algorithm of that name. Raises `ConfigError` for an unknown one."""
    if algo not in ALGORITHMS:
        raise ConfigError(f"algo must be one of {', '.join(ALGORITHMS)}, not {algo!r}")
    algorithm: Algorithm = load_reference(ALGORITHMS[algo])(**network)
    return algorithm

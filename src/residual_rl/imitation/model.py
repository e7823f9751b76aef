"""Imitation models and their files: settings, normalisation statistics and the averaged weights of the
network."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation.algorithms.base import Algorithm
from residual_rl.imitation.normalization import Statistics
from residual_rl.imitation.obs_padding import ObsPadding
from residual_rl.registry import load as load_reference
from residual_rl.runs import checkpoint
from residual_rl.types import State
from residual_rl.utils.module_state import check_module_state, load_module_state, module_state
from residual_rl.utils.validation import CheckedCfg, ChunkLength, LayerSize, Names

MODEL_FILE = "model.safetensors"
"""Name of the best model in the folder of a training run."""
LAST_FILE = "last.safetensors"
"""Name of the model at the end of training, or when it was interrupted."""
MODEL_VERSION = 1
"""Version of the file format."""

ALGORITHMS = {
    "bc": "residual_rl.imitation.algorithms.bc:BC",
    "diffusion": "residual_rl.imitation.algorithms.diffusion:Diffusion",
    "flow": "residual_rl.imitation.algorithms.flow:Flow",
    "act": "residual_rl.lerobot.act:Act",
}
"""Class of each algorithm, as `module:attribute`."""


@dataclass(frozen=True)
class ModelSettings(CheckedCfg):
    """Settings of an imitation model. Raises `ConfigError` for a value of a wrong type or out of bounds."""

    algo: str
    network: dict[str, Any]
    """Keyword arguments of the algorithm, including the sizes of its network."""
    obs_keys: Names
    """Observations that the policy reads, concatenated in this order."""
    obs_shapes: dict[str, tuple[int, ...]]
    """Shapes of the observations without the batch."""
    action_dim: LayerSize
    num_obs_steps: ChunkLength
    chunk_size: ChunkLength
    """Number of predicted actions from the current step on."""
    num_action_steps: ChunkLength
    sampling_steps: ChunkLength
    task_id: str
    """Task of the demonstrations."""
    task_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that task as plain values."""
    action_unit: tuple[float, ...] | None = None
    """[A]: the size of an action of 1 in `action_unit_name`; None if unknown."""
    action_unit_name: str | None = None
    """Unit of `action_unit`, for example "rad"."""
    num_past_actions: Annotated[int, Interval(ge=0, le=1 << 14)] = 0
    """Number of additional predicted actions for the steps before the current one, which are never
    executed."""
    obs_padding: ObsPadding | None = None
    """Constants inserted into each observation vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("network", "obs_shapes", "task_settings"):
            if not isinstance(getattr(self, name), dict):
                raise ConfigError(f"{name} must be an object, not {getattr(self, name)!r}")
        if self.action_unit is not None and len(self.action_unit) != self.action_dim:
            raise ConfigError(f"action_unit must have {self.action_dim} numbers, not {len(self.action_unit)}")
        for name, shape in self.obs_shapes.items():
            _check_sizes(f"the shape of {name}", shape)
        for name, value in self.network.items():
            if isinstance(value, dict):  # LeRobot's own settings of ACT, by name
                value = [size for size in value.values() if type(size) is int]
            if not isinstance(value, str):
                _check_sizes(name, value if isinstance(value, list | tuple) else [value])

    @property
    def obs_size(self) -> int:
        """O: size of the observation vector of a step, including padding."""
        padding = 0 if self.obs_padding is None else len(self.obs_padding.values)
        return sum(math.prod(self.obs_shapes[key]) for key in self.obs_keys) + padding

    @property
    def obs_dim(self) -> int:
        """H · O: size of the flat observation window."""
        return self.num_obs_steps * self.obs_size

    @property
    def num_predicted_actions(self) -> int:
        """P + K: number of predicted actions, including past ones."""
        return self.num_past_actions + self.chunk_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSettings:
        """The inverse of `to_dict`. Raises `KeyError` for a missing entry."""
        values = {f.name: data[f.name] for f in fields(cls)}
        values["obs_keys"] = tuple(values["obs_keys"])
        values["obs_shapes"] = {key: tuple(shape) for key, shape in values["obs_shapes"].items()}
        values["action_unit"] = None if values["action_unit"] is None else tuple(values["action_unit"])
        padding = values["obs_padding"]
        values["obs_padding"] = (
            None if padding is None else ObsPadding(padding["index"], tuple(padding["values"]))
        )
        return cls(**values)


class ImitationModel:
    """A policy that predicts chunks of actions from windows of observations.

    Args:
        settings: settings of the model.
        statistics: statistics of the demonstrations.
        weights: weights of the network by name; None draws them from torch's global generator.
        step: number of gradient steps of its training.
        name: name of the model in errors.
    """

    def __init__(
        self,
        settings: ModelSettings,
        statistics: Statistics,
        weights: State | None = None,
        step: int = 0,
        name: str = "the model",
    ):
        self.settings = settings
        self.statistics = statistics
        self.step = step
        self.name = name
        self.algorithm = make_algorithm(settings.algo, settings.network)
        sizes = settings.obs_dim, settings.num_predicted_actions, settings.action_dim
        if weights is not None:  # compare the shapes before memory is allocated for them
            with torch.device("meta"):
                check_module_state(self.algorithm.make_network(*sizes), weights, name)
        self.network: nn.Module = self.algorithm.make_network(*sizes)
        if weights is not None:
            load_module_state(self.network, weights, name)
        self.network.requires_grad_(False).eval()

    def to(self, device: torch.device, dtype: torch.dtype) -> ImitationModel:
        """Move the model to `device` and `dtype`, and return it."""
        self.network.to(device, dtype)
        self.statistics = self.statistics.to(device, dtype)
        return self

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor, sampling_steps: int | None = None) -> Tensor:
        """Predict actions [b, K, A].

        Args:
            obs: [b, H, O] without padding, oldest first, on the model's device and of its dtype.
            noise: [b, P + K, A], standard normal, on the model's device and of its dtype.
            sampling_steps: steps from noise to actions; defaults to the model's.
        """
        settings = self.settings
        padded = obs if settings.obs_padding is None else settings.obs_padding(obs)
        normalized = self.statistics.normalize_obs(padded).flatten(1)
        actions = self.algorithm.sample(
            self.network, normalized, noise, sampling_steps or settings.sampling_steps
        )
        return self.statistics.restore_actions(actions[:, settings.num_past_actions :])

    def save(self, path: Path) -> None:
        """Write the model to `path` atomically. Raises the errors of `checkpoint.save`."""
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
        """Load a model file, or the best model in the folder of a training run.

        Raises `CheckpointError` with the file and the problem.
        """
        file = find_model(Path(path))
        state = checkpoint.load(file, "model")
        version = state.get("model_version")
        if version != MODEL_VERSION:
            raise CheckpointError(
                f"{file} is an imitation model of version {version}; this release supports version"
                f" {MODEL_VERSION}"
            )
        try:
            settings = ModelSettings.from_dict(state["settings"])
            statistics = Statistics.from_state(
                state.get("statistics"), settings.obs_size, settings.action_dim, str(file)
            )
            return cls(settings, statistics, state["weights"], state["step"], str(file))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CheckpointError(
                f"{file} has settings that this release cannot read: {type(error).__name__}: {error}"
            ) from error


def _check_sizes(name: str, sizes: Sequence[Any]) -> None:
    largest = 1 << 16
    if not all(type(size) is int and 1 <= size <= largest for size in sizes):
        raise ConfigError(f"{name} must be whole numbers from 1 to {largest}, not {list(sizes)}")


def find_model(path: Path) -> Path:
    """`path` itself, or the best model in the folder `path`. Raises `CheckpointError` if there is none."""
    if not path.is_dir():
        return path
    file = path / MODEL_FILE
    if not file.is_file():
        others = sorted(p.name for p in path.glob("*.safetensors"))
        has = (
            f"it has {', '.join(others)}: choose one"
            if others
            else "it is not an output of `residual-rl imitate`"
        )
        raise CheckpointError(f"{path} has no {MODEL_FILE}; {has}")
    return file


def make_algorithm(algo: str, network: dict[str, Any]) -> Algorithm:
    """Construct the algorithm `algo` with the arguments `network`. Raises `ConfigError` if it is unknown."""
    if algo not in ALGORITHMS:
        raise ConfigError(f"algo must be one of {', '.join(ALGORITHMS)}, not {algo!r}")
    algorithm: Algorithm = load_reference(ALGORITHMS[algo])(**network)
    return algorithm

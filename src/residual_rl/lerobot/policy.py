"""LeRobot policies that predict chunks of joint positions: ACT, Diffusion, and others with the same
interface.

LeRobot keeps one action queue and one observation history for the whole batch, and cannot reset a single env.
The executor keeps both instead, and only queries the policy for chunks: with `predict_action_chunk`, or with
`diffusion.generate_actions` for policies that use a history.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.envs.spaces import conversion_inputs, is_image, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.lerobot.checkpoint import LeRobotModel, find_checkpoint, load_model
from residual_rl.lerobot.support import ENVIRONMENT_STATE, IMAGES, STATE, from_units, to_units
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.types import BasePolicy, Obs
from residual_rl.utils.seeding import noise_of
from residual_rl.utils.text import one_line, parse_pairs

JOINTS, ENVIRONMENT = "joint_position", "state"
"""The env's observations for LeRobot's `observation.state` and `observation.environment_state`."""
ROWS = 4
"""On a CPU, batches are padded to a multiple of this; see `imitation.policy`."""


class LeRobotPolicy(BasePolicy):
    """Queries a LeRobot policy for chunks. It is stateless: its noise is a function of the observations and
    the seed.

    Args:
        cfg: the settings; `checkpoint` is not used.
        model: the policy, which this object modifies and owns.
        env: an env that exposes `hardware` and whose actions command joint targets.

    Raises:
        ConfigError: the settings or the model do not fit `env`.
        CheckpointError: the model's features do not fit `env`.
    """

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel, env: VecEnv):
        if env.hardware is None:
            raise ConfigError("it needs an env that exposes the hardware units of its robot")
        self._cfg = cfg
        self._env = env
        self._model = model
        self._hardware: HardwareUnits = env.hardware
        self._sources = _sources(cfg, model, env)
        self._conversion = conversion_inputs(env)
        names = dict.fromkeys([*self._sources.values(), *self._conversion])
        self.inputs = {name: shape_of(env, name) for name in names}  # type: ignore[misc]
        self._device = torch.device(cfg.device) if cfg.device else env.device
        self._double = self._device.type == "cpu" and cfg.precision == "float64"
        if self._double:
            compute_in_double(model.policy)
        self._predictor = _make_predictor(cfg, model)
        self.num_obs_steps = self._predictor.num_obs_steps
        self.num_action_steps = self._predictor.num_action_steps
        self.chunk_size = self._probe()
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps is {self.num_action_steps}, but {model.name} predicts {self.chunk_size}"
            )

    @torch.no_grad()
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:  # noqa: ARG002
        chunk = self._chunk(obs)
        latest = {
            name: obs[name][:, -1] if self.num_obs_steps > 1 else obs[name] for name in self._conversion
        }
        targets = from_units(self._hardware, chunk.to(self._env.device), self._cfg.units)
        return self._env.targets_to_actions(targets, latest)

    def _chunk(self, obs: Obs) -> Tensor:
        """The policy's joint positions [b, K, J], in its own units."""
        # Pad the batch.
        seen = {name: obs[name] for name in dict.fromkeys(self._sources.values())}
        count = len(next(iter(seen.values())))
        if self._device.type == "cpu" and count % ROWS:
            filled = torch.arange(-(-count // ROWS) * ROWS).clamp(max=count - 1)
            seen = {name: value[filled] for name, value in seen.items()}

        # Convert the observations and query the policy.
        shape = self._predictor.noise_shape
        noise = noise_of(seen, self._cfg.seed, shape) if shape else None
        batch: dict[str, Any] = {
            feature: self._feature(feature, seen[name]) for feature, name in self._sources.items()
        }
        batch["task"] = [self._cfg.task_description] * len(batch[next(iter(self._sources))])
        with self._seeded():
            actions = self._predictor(self._model.preprocessor(batch), noise)
        chunk: Tensor = self._model.postprocessor(actions)
        return chunk[:count].double()

    @contextlib.contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed torch's global generators for the block, for policies that draw from them, and restore them
        after it."""
        on_gpu = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.default_generator.manual_seed(self._cfg.seed)
            if on_gpu:
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(self._cfg.seed)
            yield

    def _feature(self, feature: str, value: Tensor) -> Tensor:
        """Convert the observation `value` [b, …] to the policy's `feature`."""
        dtype = torch.float64 if self._double else torch.float32
        if feature == STATE:
            value = to_units(self._hardware, value, self._cfg.units)
        elif feature != ENVIRONMENT_STATE:
            value = value.movedim(-1, -3).to(dtype) / 255.0
        return value.to(self._device, dtype)

    def _probe(self) -> int:
        """Query the policy once to find K. Raises `CheckpointError` if it fails or does not predict joint
        positions."""
        steps = (self.num_obs_steps,) if self.num_obs_steps > 1 else ()
        spaces = observed(self._env)
        zeros = {
            name: torch.zeros((1, *steps, *shape), dtype=_dtype(spaces[name]))
            for name, shape in self.inputs.items()
        }
        try:
            chunk = self._chunk(zeros)
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            fix = "; if it cannot compute in float64, use --base.precision native" if self._double else ""
            raise CheckpointError(f"{self._model.name} predicts no action chunk ({reason}){fix}") from error
        joints = len(self._hardware.joint_names)
        if chunk.dim() != 3 or chunk.shape[2] != joints:
            raise CheckpointError(
                f"{self._model.name} predicts {tuple(chunk.shape)}; expected (envs, chunk, {joints} joints)"
            )
        return int(chunk.shape[1])


def _sources(cfg: LeRobotCfg, model: LeRobotModel, env: VecEnv) -> dict[str, str]:
    """The env's observation for each feature of the policy. Raises `CheckpointError` if they do not fit."""
    # Actions.
    assert env.hardware is not None
    config, name, spaces = model.config, model.name, observed(env)
    joints = len(env.hardware.joint_names)
    if tuple(config.action_feature.shape) != (joints,):
        raise CheckpointError(
            f"{name} predicts actions of {config.action_feature.shape[0]} numbers; this env's robot has "
            f"{joints} joints ({', '.join(env.hardware.joint_names)})"
        )

    # Observations.
    cameras = parse_pairs(cfg.cameras, "cameras")
    sources = {}
    for feature, described in config.input_features.items():
        shape = tuple(described.shape)
        if feature in config.image_features:
            camera = feature.removeprefix(IMAGES).removeprefix("observation.")
            sources[feature] = cameras.pop(camera, camera)
            _check_image(name, feature, sources[feature], shape, env)
        elif feature in (STATE, ENVIRONMENT_STATE):
            source = sources[feature] = JOINTS if feature == STATE else ENVIRONMENT
            if source not in spaces:
                raise CheckpointError(
                    f"{name} needs {feature!r}, which is the observation {source!r}; "
                    f"this env has {', '.join(spaces)}"
                )
            if shape != shape_of(env, source):
                raise CheckpointError(
                    f"{name} needs {feature!r} of {shape}; this env's {source!r} has {shape_of(env, source)}"
                )
        else:
            raise CheckpointError(f"{name} needs {feature!r} {shape}, which this env does not observe")
    if cameras:
        raise ConfigError(f"cameras has {', '.join(cameras)}, which {name} does not use: remove them")
    return sources


def _check_image(name: str, feature: str, camera: str, shape: tuple[int, ...], env: VecEnv) -> None:
    images = [key for key, space in observed(env).items() if is_image(space)]
    if camera not in images:
        has = f"the cameras {', '.join(images)}" if images else "no cameras"
        raise CheckpointError(
            f"{name} needs {feature!r}, but this env has {has}; "
            "assign one with --base.cameras ENV_NAME=POLICY_NAME"
        )
    height, width, channels = shape_of(env, camera)
    if shape != (channels, height, width):
        found = (channels, height, width)
        raise CheckpointError(
            f"{name} needs {feature!r} of {shape} (channels, height, width); camera {camera!r} has {found}"
        )


def _dtype(space: Any) -> torch.dtype:
    return torch.uint8 if is_image(space) else torch.float32


class _Predictor(ABC):
    """Queries a policy for a chunk."""

    num_obs_steps: int
    """H: number of observations that the policy uses."""
    num_action_steps: int
    """Number of actions executed of each chunk."""
    noise_shape: tuple[int, ...] | None
    """Shape of one row of the noise; None if the policy needs none."""

    @abstractmethod
    def __call__(self, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
        """Normalised actions [b, K, J] for the features in `batch`, from standard normal `noise` [b, …]
        float64."""


def _make_predictor(cfg: LeRobotCfg, model: LeRobotModel) -> _Predictor:
    config = model.config
    if hasattr(getattr(model.policy, "diffusion", None), "generate_actions"):
        return _DiffusionPredictor(cfg, model)
    if config.n_obs_steps != 1:
        raise ConfigError(
            f"{model.name} is of type {config.type!r}, which keeps one observation history for all envs"
        )
    if cfg.inference_steps is not None:
        raise ConfigError(
            f"inference_steps is for Diffusion policies; {model.name} is of type {config.type!r}"
        )
    return _ChunkPredictor(cfg, model)


class _ChunkPredictor(_Predictor):
    """Uses `predict_action_chunk` of a policy that depends on the current observation only."""

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel):
        config = model.config
        if getattr(config, "temporal_ensemble_coeff", None) is not None and cfg.num_action_steps is None:
            raise ConfigError(
                f"{model.name} uses temporal ensembling (temporal_ensemble_coeff), which is not supported; "
                "set the number of actions executed of each chunk: --base.num-action-steps"
            )
        self.num_obs_steps = 1
        self.num_action_steps = cfg.num_action_steps or config.n_action_steps
        self._policy = model.policy
        parameters = inspect.signature(model.policy.predict_action_chunk).parameters.values()
        accepts_noise = any(p.name == "noise" or p.kind is p.VAR_KEYWORD for p in parameters)
        takes_noise = accepts_noise and hasattr(config, "max_action_dim")
        self.noise_shape = (config.chunk_size, config.max_action_dim) if takes_noise else None

    def __call__(self, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
        self._policy.reset()
        like = next(self._policy.parameters())
        more = {} if noise is None else {"noise": noise.to(like.device, like.dtype)}
        actions: Tensor = self._policy.predict_action_chunk(batch, **more)
        return actions


class _DiffusionPredictor(_Predictor):
    """Uses `diffusion.generate_actions` of a Diffusion policy.

    The noise that its scheduler adds in each denoising step (DDPM) comes from one generator per row, which is
    seeded with that row's noise.
    """

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel):
        # Steps.
        config = copy.copy(model.config)
        self._config = config
        self._diffusion = model.policy.diffusion
        most = config.horizon - config.n_obs_steps + 1
        self.num_obs_steps = config.n_obs_steps
        self.num_action_steps = cfg.num_action_steps or config.n_action_steps
        if self.num_action_steps > most:
            raise ConfigError(
                f"num_action_steps must be at most {most} for {model.name}, not {self.num_action_steps}"
            )
        config.n_action_steps = self.num_action_steps  # the length of the result of generate_actions
        self._diffusion.config = config
        if cfg.inference_steps is not None:
            trained = self._diffusion.noise_scheduler.config.num_train_timesteps
            if cfg.inference_steps > trained:
                raise ConfigError(
                    f"inference_steps is {cfg.inference_steps}, but {model.name} was trained with {trained}"
                )
            if cfg.inference_steps < 2:
                raise ConfigError("inference_steps must be at least 2, not 1: one step gives clipped noise")
            self._diffusion.num_inference_steps = cfg.inference_steps

        # Noise.
        self._joints = config.action_feature.shape[0]
        self.noise_shape = (config.horizon * self._joints + 1,)
        self._generators: list[torch.Generator] = []
        step = self._diffusion.noise_scheduler.step
        self._diffusion.noise_scheduler.step = lambda *args, **more: step(
            *args, **{**more, "generator": self._generators}
        )

    def __call__(self, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
        assert noise is not None
        features = self._config.input_features
        seen = {name: batch[name] if self.num_obs_steps > 1 else batch[name][:, None] for name in features}
        if self._config.image_features:
            seen["observation.images"] = torch.stack(
                [seen[name] for name in self._config.image_features], dim=-4
            )
        seeds = noise[:, -1].contiguous().view(torch.int64).tolist()
        self._generators = [torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF) for seed in seeds]
        start = noise[:, :-1].unflatten(1, (self._config.horizon, self._joints))
        like = next(self._diffusion.parameters())
        actions: Tensor = self._diffusion.generate_actions(seen, noise=start.to(like.device, like.dtype))
        return actions


def compute_in_double(policy: nn.Module) -> None:
    """Convert `policy` to float64, and cast its modules' inputs, since it may create float32 constants."""
    policy.double()
    for module in policy.modules():
        if any(p.is_floating_point() for p in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_to_double, with_kwargs=True)


def _to_double(
    _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cast(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in named.items()}


def make(cfg: LeRobotCfg, env: VecEnv) -> LeRobotPolicy:
    """The policy of a checkpoint for `env`. Raises like `load_model` and `LeRobotPolicy`."""
    if not cfg.checkpoint:
        raise ConfigError(
            "a trained policy is needed: --il-checkpoint FOLDER, or OWNER/NAME on the Hugging Face hub"
        )
    device = torch.device(cfg.device) if cfg.device else env.device
    return LeRobotPolicy(cfg, load_model(cfg.checkpoint, device, cfg.revision, cfg.trust_checkpoint), env)


def files(cfg: LeRobotCfg) -> dict[str, Path]:
    """The files of the checkpoint, see `BasePolicySpec.files`. Raises `CheckpointError`."""
    folder = find_checkpoint(cfg.checkpoint, cfg.revision)
    return {file.name: file for file in sorted(folder.iterdir()) if file.suffix in (".json", ".safetensors")}

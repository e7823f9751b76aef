"""A policy of LeRobot that predicts chunks of joint positions: ACT, Diffusion, and others by the same way.

LeRobot keeps one queue of actions, and one history, for the whole batch, and cannot reset one world of it. So the executor keeps both,
and the policy is only ever asked for chunks: `predict_action_chunk`, or `diffusion.generate_actions` of one that plans from a history.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.envs.spaces import conversion_inputs, is_image, observed, shape_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.lerobot.checkpoint import LeRobotModel, load_model
from residual_rl.lerobot.support import ENVIRONMENT_STATE, IMAGES, STATE, from_units, to_units
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.types import BasePolicy, Obs
from residual_rl.utils.seeding import noise_of
from residual_rl.utils.text import parse_pairs

JOINTS, ENVIRONMENT = "joint_position", "state"
"""The env's observations that LeRobot calls `observation.state` and `observation.environment_state`."""
ROWS = 4
"""On a CPU batches are filled up to a multiple of this; see `base_policies.il`."""


class LeRobotPolicy(BasePolicy):
    """Asks a LeRobot policy for chunks. It has no state: its noise is a function of the observations and the seed.

    Args:
        cfg: the settings, whose `checkpoint` is not looked at.
        model: belongs to this policy from now on.
        env: its robot must tell its own units, and its actions must command joint targets.
    """

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel, env: VecEnv):
        if env.hardware is None:
            raise ConfigError(
                "it needs an env that knows the units of a robot's own software; this one has none"
            )
        self._cfg, self._env, self._model = cfg, env, model
        self._hardware: HardwareUnits = env.hardware
        self._sources = _sources(cfg, model, env)
        self._conversion = conversion_inputs(env)
        names = dict.fromkeys([*self._sources.values(), *self._conversion])
        self.inputs: Mapping[str, tuple[int, ...]] = {name: shape_of(env, name) for name in names}  # type: ignore[misc]
        self._device = torch.device(cfg.device) if cfg.device else env.device
        self._double = self._device.type == "cpu" and cfg.precision == "float64"
        if self._double:
            compute_in_double(model.policy)
        self._planner = _planner(cfg, model)
        self.num_obs_steps, self.num_action_steps = (
            self._planner.num_obs_steps,
            self._planner.num_action_steps,
        )
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
        """The policy's joint positions [b, K, J] in its own units."""
        seen = {name: obs[name] for name in dict.fromkeys(self._sources.values())}
        count = len(next(iter(seen.values())))
        if self._device.type == "cpu" and count % ROWS:
            filled = torch.arange(-(-count // ROWS) * ROWS).clamp(max=count - 1)
            seen = {name: value[filled] for name, value in seen.items()}
        shape = self._planner.noise_shape
        noise = noise_of(seen, self._cfg.seed, shape) if shape else None
        batch: dict[str, Any] = {
            feature: self._feature(feature, seen[name]) for feature, name in self._sources.items()
        }
        batch["task"] = [self._cfg.task_description] * len(batch[next(iter(self._sources))])
        with self._own_numbers():
            actions = self._planner(self._model.preprocessor(batch), noise)
        chunk: Tensor = self._model.postprocessor(actions)
        return chunk[:count].double()

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Begin torch's random numbers anew, for a policy that draws some: nothing better can be done for it. Those of others go on."""
        on_gpu = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.default_generator.manual_seed(self._cfg.seed)
            if on_gpu:
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(self._cfg.seed)
            yield

    def _feature(self, feature: str, value: Tensor) -> Tensor:
        """An observation [b, …] as the policy knows it."""
        dtype = torch.float64 if self._double else torch.float32
        if feature == STATE:
            value = to_units(self._hardware, value, self._cfg.units)
        elif feature != ENVIRONMENT_STATE:
            value = value.movedim(-1, -3).to(dtype) / 255.0
        return value.to(self._device, dtype)

    def _probe(self) -> int:
        """K, as the policy itself shows it. Raises `CheckpointError` where it cannot be asked, or gives no joint positions."""
        steps = (self.num_obs_steps,) if self.num_obs_steps > 1 else ()
        spaces = observed(self._env)
        zeros = {
            name: torch.zeros((1, *steps, *shape), dtype=_dtype(spaces[name]))
            for name, shape in self.inputs.items()
        }
        try:
            chunk = self._chunk(zeros)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            mend = "; if it cannot compute in float64: --base.precision native" if self._double else ""
            raise CheckpointError(f"{self._model.name} gives no chunk of actions ({reason}){mend}") from error
        joints = len(self._hardware.joint_names)
        if chunk.dim() != 3 or chunk.shape[2] != joints:
            raise CheckpointError(
                f"{self._model.name} gives {tuple(chunk.shape)}; expected (worlds, chunk, {joints} joints)"
            )
        return int(chunk.shape[1])


def _sources(cfg: LeRobotCfg, model: LeRobotModel, env: VecEnv) -> dict[str, str]:
    """The env's observation for each feature that the policy needs. Raises `CheckpointError` naming both sides where they do not fit."""
    assert env.hardware is not None
    config, name, spaces = model.config, model.name, observed(env)
    joints = len(env.hardware.joint_names)
    if tuple(config.action_feature.shape) != (joints,):
        raise CheckpointError(
            f"{name} gives actions of {config.action_feature.shape[0]} numbers; this env's robot has {joints} joints "
            f"({', '.join(env.hardware.joint_names)})"
        )
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
                    f"{name} needs {feature!r}, which is made of {source!r}; this env observes {', '.join(spaces)}"
                )
            if shape != shape_of(env, source):
                raise CheckpointError(
                    f"{name} needs {feature!r} of {shape}; this env's {source!r} has {shape_of(env, source)}"
                )
        else:
            raise CheckpointError(f"{name} needs {feature!r} {shape}, for which this env has nothing")
    if cameras:
        raise ConfigError(f"cameras names {', '.join(cameras)}, which {name} does not look through")
    return sources


def _check_image(name: str, feature: str, camera: str, shape: tuple[int, ...], env: VecEnv) -> None:
    images = [key for key, space in observed(env).items() if is_image(space)]
    if camera not in images:
        raise CheckpointError(
            f"{name} needs {feature!r}, but this env observes {'the cameras ' + ', '.join(images) if images else 'no cameras'}; "
            "choose which with --base.cameras ENV_NAME=POLICY_NAME"
        )
    height, width, channels = shape_of(env, camera)
    if shape != (channels, height, width):
        raise CheckpointError(
            f"{name} needs {feature!r} of {shape} (channels, height, width); camera {camera!r} has {channels, height, width}"
        )


def _dtype(space: Any) -> torch.dtype:
    return torch.uint8 if is_image(space) else torch.float32


class _Planner(ABC):
    """Asks a policy for a chunk."""

    num_obs_steps: int
    num_action_steps: int
    noise_shape: tuple[int, ...] | None
    """Of a row of the noise that it is given; None where it needs none."""

    @abstractmethod
    def __call__(self, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
        """Actions [b, K, J] for the features in `batch`, normalised, from standard normal `noise` [b, …] float64."""


def _planner(cfg: LeRobotCfg, model: LeRobotModel) -> _Planner:
    config = model.config
    if hasattr(getattr(model.policy, "diffusion", None), "generate_actions"):
        return _DiffusionPlanner(cfg, model)
    if config.n_obs_steps != 1:
        raise ConfigError(
            f"{model.name} is of type {config.type!r}, which keeps a history of its own for all worlds together"
        )
    if cfg.inference_steps is not None:
        raise ConfigError(
            f"inference_steps is for Diffusion policies; {model.name} is of type {config.type!r}"
        )
    return _ChunkPlanner(cfg, model)


class _ChunkPlanner(_Planner):
    """`predict_action_chunk` of a policy that plans from the present observation."""

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel):
        config = model.config
        if getattr(config, "temporal_ensemble_coeff", None) is not None and cfg.num_action_steps is None:
            raise ConfigError(
                f"{model.name} averages the actions of all chunks that overlap (temporal_ensemble_coeff), which is not done here; "
                "choose how many actions of a chunk are executed: --base.num-action-steps"
            )
        self.num_obs_steps, self.num_action_steps = 1, cfg.num_action_steps or config.n_action_steps
        self._policy = model.policy
        parameters = inspect.signature(model.policy.predict_action_chunk).parameters.values()
        takes_noise = any(p.name == "noise" or p.kind is p.VAR_KEYWORD for p in parameters) and hasattr(
            config, "max_action_dim"
        )
        self.noise_shape = (config.chunk_size, config.max_action_dim) if takes_noise else None

    def __call__(self, batch: dict[str, Any], noise: Tensor | None) -> Tensor:
        self._policy.reset()
        like = next(self._policy.parameters())
        more = {} if noise is None else {"noise": noise.to(like.device, like.dtype)}
        actions: Tensor = self._policy.predict_action_chunk(batch, **more)
        return actions


class _DiffusionPlanner(_Planner):
    """`diffusion.generate_actions` of a Diffusion policy.

    The noise that its scheduler adds on the way (DDPM) comes from a generator for each row, seeded by that row's noise.
    """

    def __init__(self, cfg: LeRobotCfg, model: LeRobotModel):
        config = self._config = copy.copy(model.config)
        self._diffusion = model.policy.diffusion
        most = config.horizon - config.n_obs_steps + 1
        self.num_obs_steps, self.num_action_steps = (
            config.n_obs_steps,
            cfg.num_action_steps or config.n_action_steps,
        )
        if self.num_action_steps > most:
            raise ConfigError(
                f"num_action_steps must be at most {most} for {model.name}, not {self.num_action_steps}"
            )
        config.n_action_steps = self.num_action_steps  # what generate_actions cuts out
        self._diffusion.config = config
        if cfg.inference_steps is not None:
            trained = self._diffusion.noise_scheduler.config.num_train_timesteps
            if cfg.inference_steps > trained:
                raise ConfigError(
                    f"inference_steps is {cfg.inference_steps}, but {model.name} was trained with {trained}"
                )
            self._diffusion.num_inference_steps = cfg.inference_steps
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
    """Let `policy` compute in float64 from now on, also where it makes float32 constants on the way."""
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
    """The policy of a checkpoint for `env`. Raises like `load_model`, and where it is of another robot or sees something else."""
    if not cfg.checkpoint:
        raise ConfigError(
            "it needs a trained policy: --il-checkpoint FOLDER, or owner/name on the Hugging Face hub"
        )
    device = torch.device(cfg.device) if cfg.device else env.device
    return LeRobotPolicy(cfg, load_model(cfg.checkpoint, device, cfg.revision, cfg.trust_checkpoint), env)

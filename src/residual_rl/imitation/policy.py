"""A policy that `residual-rl imitate` trained, as a base policy: behaviour cloning, diffusion or flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from residual_rl.base_policies.il import ILCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.types import ActionChunk, BasePolicy, Obs
from residual_rl.utils.seeding import noise_of

if TYPE_CHECKING:
    from residual_rl.imitation.model import ImitationModel


ROWS = 4
"""On a CPU batches are filled up to a multiple of this. A matrix product works on blocks of rows, and those of a block that is not full
round differently in the last bit; what a world gets must not depend on how many ask beside it."""


class ILPolicy(BasePolicy):
    """Asks an imitation model for chunks. It has no state: its noise is a function of the observations and the seed.

    On a CPU it computes in float64, and rounds at the end: see `residual_rl.exported_policy.ExportedPolicy.actor`.

    Args:
        cfg: the settings, whose `checkpoint` is not looked at.
        model: moved to `device`.
        device: what to compute on; observations are brought there, and actions are on it.
    """

    def __init__(self, cfg: ILCfg, model: ImitationModel, device: torch.device):
        settings = model.settings
        self.num_obs_steps, self.chunk_size = settings.num_obs_steps, settings.chunk_size
        self.num_action_steps = cfg.num_action_steps or settings.num_action_steps
        self.inputs: Mapping[str, tuple[int, ...]] = {key: settings.obs_shapes[key] for key in settings.obs_keys}  # type: ignore[misc]
        self._cfg, self._device = cfg, device
        self._dtype = torch.float64 if device.type == "cpu" else torch.float32
        self._model = model.to(device, self._dtype)
        self._shape = (settings.num_predicted_actions, settings.action_dim)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:  # noqa: ARG002
        window = torch.cat([self._rows(obs[key]) for key in self.inputs], -1)  # [b, H, O]
        samples = self._cfg.num_samples if self._model.algorithm.stochastic else 1
        chunks = self._sample(window, samples).float()
        if samples == 1:
            return chunks[0]
        return ActionChunk(chunks[0], chunks.std(0, correction=0).mean(-1))

    def _rows(self, value: Tensor) -> Tensor:
        """An observation [b, H, …] or, with H = 1, [b, …] as vectors [b, H, O] float32."""
        return value.to(self._device, torch.float32).reshape(len(value), self.num_obs_steps, -1)

    def _sample(self, window: Tensor, samples: int) -> Tensor:
        """Chunks [samples, b, K, A] for `window` [b, H, O], each sample from noise of its own."""
        seeds = [self._cfg.seed + (sample << 32) for sample in range(samples)]
        noise = torch.cat([noise_of(window, seed, self._shape) for seed in seeds]).to(self._dtype)
        window = window.to(self._dtype).repeat(samples, 1, 1)
        count = len(window)
        if self._device.type == "cpu" and count % ROWS:
            filling = torch.full((ROWS - count % ROWS,), count - 1)
            window, noise = (torch.cat([value, value[filling]]) for value in (window, noise))
        return self._model.sample(window, noise, self._cfg.sampling_steps)[:count].unflatten(0, (samples, -1))


def make(cfg: ILCfg, env: VecEnv) -> ILPolicy:
    """The policy of a checkpoint for `env`. Raises `CheckpointError` where it is no model, `ConfigError` where it does not fit."""
    from residual_rl.imitation.model import ImitationModel

    if not cfg.checkpoint:
        raise ConfigError("it needs a trained policy: --il-checkpoint FOLDER, as `residual-rl imitate` and `convert` make it")
    model = ImitationModel.load(cfg.checkpoint)
    check_fit(model, env)
    settings = model.settings
    if cfg.num_action_steps is not None and cfg.num_action_steps > settings.chunk_size:
        raise ConfigError(f"num_action_steps must be at most {settings.chunk_size}, what {model.name} predicts, not {cfg.num_action_steps}")
    return ILPolicy(cfg, model, env.device)


def check_fit(model: ImitationModel, env: VecEnv) -> None:
    """Raise `ConfigError` naming both sides where `model` was trained on other observations or actions than those of `env`."""
    settings, name = model.settings, model.name
    made_for = f"it was made for task {settings.task_id!r}"
    spaces = env.single_observation_space.spaces  # type: ignore[attr-defined]
    for key in settings.obs_keys:
        shape = settings.obs_shapes[key]
        if key not in spaces:
            raise ConfigError(f"{name} was trained on {key!r} {shape}, which this env does not give ({', '.join(spaces)}); {made_for}")
        if tuple(spaces[key].shape) != shape:
            raise ConfigError(f"{name} was trained on {key!r} {shape}, this env gives {tuple(spaces[key].shape)}; {made_for}")
    mode = settings.task_settings.get("control_mode")
    if mode and env.control_mode and mode != env.control_mode:
        raise ConfigError(
            f"{name} was trained on actions of control mode {mode}, this env takes those of {env.control_mode}: "
            f"choose --control-mode {mode}; {made_for}"
        )
    actions = len(env.action_unit)
    if settings.action_dim != actions:
        raise ConfigError(f"{name} gives actions of {settings.action_dim} numbers, this env takes {actions}; {made_for}")
    if settings.action_unit is None:
        return
    mine = torch.tensor(settings.action_unit, dtype=torch.float64)
    theirs = env.action_unit.cpu().double()
    if settings.action_unit_name != env.action_unit_name or not torch.allclose(mine, theirs, rtol=1e-4, atol=0.0):
        raise ConfigError(
            f"{name} was trained where an action of 1 means {_sizes(mine)} {settings.action_unit_name}, here it means {_sizes(theirs)} "
            f"{env.action_unit_name}: another control mode or scale of actions; {made_for}"
        )


def _sizes(values: Tensor) -> str:
    """A vector in short: one number where all are the same."""
    texts = [f"{value:.4g}" for value in values.tolist()]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"

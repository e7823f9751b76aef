"""Imitation policies (behaviour cloning, diffusion, flow matching) trained by `residual-rl imitate`, as base
policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from residual_rl.base_policies.il import ILCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.imitation.config import check_sampling_steps
from residual_rl.types import ActionChunk, BasePolicy, Obs
from residual_rl.utils.seeding import noise_of

if TYPE_CHECKING:
    from residual_rl.imitation.model import ImitationModel


ROWS = 4
"""On a CPU, batches are padded to a multiple of this. Matrix products process blocks of rows, and incomplete
blocks round differently in the last bit, so that the actions of an env would depend on the number of envs in
the batch."""


class ILPolicy(BasePolicy):
    """An imitation model as a base policy. It is stateless: its noise is a function of the observations and
    the seed.

    On a CPU it computes in float64 and rounds at the end; see
    `residual_rl.exported_policy.ExportedPolicy.actor`.

    Args:
        cfg: the settings; `checkpoint` is ignored.
        model: the model, which is moved to `device`.
        device: device of the computation and the actions.
    """

    def __init__(self, cfg: ILCfg, model: ImitationModel, device: torch.device):
        settings = model.settings
        self.num_obs_steps = settings.num_obs_steps
        self.chunk_size = settings.chunk_size
        self.num_action_steps = cfg.num_action_steps or settings.num_action_steps
        self.inputs = {key: settings.obs_shapes[key] for key in settings.obs_keys}  # type: ignore[misc]
        self._cfg = cfg
        self._device = device
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
        """Chunks [samples, b, K, A] for `window` [b, H, O], each sample from different noise."""
        seeds = [self._cfg.seed + (sample << 32) for sample in range(samples)]
        noise = torch.cat([noise_of(window, seed, self._shape) for seed in seeds]).to(self._dtype)
        window = window.to(self._dtype).repeat(samples, 1, 1)
        count = len(window)
        if self._device.type == "cpu" and count % ROWS:
            filling = torch.full((ROWS - count % ROWS,), count - 1)
            window, noise = (torch.cat([value, value[filling]]) for value in (window, noise))
        return self._model.sample(window, noise, self._cfg.sampling_steps)[:count].unflatten(0, (samples, -1))


def make(cfg: ILCfg, env: VecEnv) -> ILPolicy:
    """Load the policy of `cfg.checkpoint` for `env`.

    Raises:
        CheckpointError: the file is not a model.
        ConfigError: the model does not match the env.
    """
    from residual_rl.imitation.model import ImitationModel

    if not cfg.checkpoint:
        raise ConfigError(
            "no checkpoint given: set --il-checkpoint FOLDER to a result of `residual-rl imitate` or"
            " `convert`"
        )
    model = ImitationModel.load(cfg.checkpoint)
    check_fit(model, env)
    settings = model.settings
    if cfg.num_action_steps is not None and cfg.num_action_steps > settings.chunk_size:
        raise ConfigError(
            f"num_action_steps must be at most {settings.chunk_size}, the chunk size of {model.name}, not"
            f" {cfg.num_action_steps}"
        )
    if settings.algo == "diffusion":
        try:
            sampling_steps = cfg.sampling_steps or settings.sampling_steps
            check_sampling_steps(sampling_steps, settings.network["diffusion_steps"])
        except ConfigError as error:
            raise ConfigError(f"{model.name}: {error}") from None
    return ILPolicy(cfg, model, env.device)


def files(cfg: ILCfg) -> dict[str, Path]:
    """The file of the model in `cfg.checkpoint`, see `BasePolicySpec.files`. Raises `CheckpointError`."""
    from residual_rl.imitation.model import MODEL_FILE, find_model

    return {MODEL_FILE: find_model(Path(cfg.checkpoint))}


def check_fit(model: ImitationModel, env: VecEnv) -> None:
    """Raise `ConfigError` if the observations or actions of `model` differ from those of `env`; the message
    has both."""
    settings = model.settings
    name = model.name
    made_for = f"it was trained for task {settings.task_id!r}"
    # Observations
    spaces = env.single_observation_space.spaces  # type: ignore[attr-defined]
    for key in settings.obs_keys:
        shape = settings.obs_shapes[key]
        if key not in spaces:
            raise ConfigError(
                f"{name} was trained on {key!r} {shape}, which this env does not have ({', '.join(spaces)});"
                f" {made_for}"
            )
        if tuple(spaces[key].shape) != shape:
            raise ConfigError(
                f"{name} was trained on {key!r} {shape}, but this env has {tuple(spaces[key].shape)};"
                f" {made_for}"
            )
    # Actions
    mode = settings.task_settings.get("control_mode")
    if mode and env.control_mode and mode != env.control_mode:
        raise ConfigError(
            f"{name} was trained with control mode {mode}, but this env has {env.control_mode}: "
            f"choose --control-mode {mode}; {made_for}"
        )
    actions = len(env.action_unit)
    if settings.action_dim != actions:
        raise ConfigError(
            f"{name} has actions of size {settings.action_dim}, but this env has {actions}; {made_for}"
        )
    if settings.action_unit is None:
        return
    mine = torch.tensor(settings.action_unit, dtype=torch.float64)
    theirs = env.action_unit.cpu().double()
    if settings.action_unit_name != env.action_unit_name or not torch.allclose(
        mine, theirs, rtol=1e-4, atol=0.0
    ):
        raise ConfigError(
            f"{name} was trained with an action unit of {_sizes(mine)} {settings.action_unit_name}, but in"
            f" this env it is {_sizes(theirs)} {env.action_unit_name}: the control mode or the scale of"
            f" actions differs; {made_for}"
        )


def _sizes(values: Tensor) -> str:
    """A vector as text: a single number if all elements are equal."""
    texts = [f"{value:.4g}" for value in values.tolist()]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"

"""Settings of the conversion of public checkpoints. This module does not import torch, so that the command
line's help stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import CheckedCfg, ChunkLength, PositiveInt


@dataclass(frozen=True)
class ConvertCfg(CheckedCfg):
    """Settings that the tensors of a public Diffusion Policy checkpoint do not contain; the defaults are the
    published ones."""

    num_obs_steps: ChunkLength = 2
    """Number of observations that the policy reads; obs_horizon in the published code."""
    prediction_horizon: ChunkLength = 16
    """Number of predicted actions from the oldest observation on; pred_horizon in the published code."""
    num_action_steps: ChunkLength = 8
    """Number of actions executed before the next prediction; act_horizon in the published code."""
    diffusion_steps: ChunkLength = 100
    """Number of noise levels in training; num_diffusion_iters in the published code."""
    sampling_steps: PositiveInt = 10
    """Number of DDIM denoising steps. Can be changed when the policy is used."""
    obs_key: str = "state"
    """Observation that the policy reads; its size follows from the tensors."""
    pad_obs_to: int | None = None
    """Size of the network's observations, if the env's are 7 smaller: the policy inserts the pose of the
    robot's base, which flat states of ManiSkill 2 have at index 18."""
    control_mode: str | None = None
    """Control mode of the policy's actions; envs with another one are refused."""
    task: str = "unknown"
    """Name of the policy's task, for messages."""
    weights: str | None = None
    """Name of the network in a file with several. None: the averaged one, whose name contains `ema`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_steps > self.diffusion_steps:
            raise ConfigError(
                f"sampling_steps must be at most diffusion_steps ({self.diffusion_steps}), not "
                f"{self.sampling_steps}"
            )
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be at most {self.chunk_size}, the number of actions from the current "
                f"step on with prediction_horizon {self.prediction_horizon} and num_obs_steps "
                f"{self.num_obs_steps}, not {self.num_action_steps}"
            )

    @property
    def chunk_size(self) -> int:
        """Number of predicted actions from the current step on."""
        return self.prediction_horizon - self.num_obs_steps + 1

"""Settings of the conversion of public checkpoints, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from residual_rl.errors import ConfigError
from residual_rl.utils.validation import CheckedCfg, PositiveInt


@dataclass(frozen=True)
class ConvertCfg(CheckedCfg):
    """What the tensors of a public Diffusion Policy checkpoint do not tell; the defaults are the published settings."""

    num_obs_steps: PositiveInt = 2
    """Observations that it plans from; published as obs_horizon."""
    prediction_horizon: PositiveInt = 16
    """Actions that its network predicts, from its oldest observation on; published as pred_horizon."""
    num_action_steps: PositiveInt = 8
    """How many are executed, from the present step on, before it plans anew; published as act_horizon."""
    diffusion_steps: PositiveInt = 100
    """Noise levels that it was trained with; published as num_diffusion_iters."""
    sampling_steps: PositiveInt = 10
    """Steps of DDIM from noise to actions. It can be chosen anew when the policy is used."""
    obs_key: str = "state"
    """Named observation that it sees; its size is told by the tensors."""
    pad_obs_to: int | None = None
    """Size of the observations it was trained on, where that of the env's is 7 less: the pose of the robot's base, which flat states of
    ManiSkill 2 have at index 18, is put in wherever the policy is used."""
    control_mode: str | None = None
    """Control mode of its actions; an env of another one is then refused."""
    task: str = "unknown"
    """Task that it was made for, as messages name it."""
    weights: str | None = None
    """Which network of the file, where it has several; none takes the averaged one, whose name has `ema` in it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_steps > self.diffusion_steps:
            raise ConfigError(
                f"sampling_steps must be at most diffusion_steps ({self.diffusion_steps}), not {self.sampling_steps}"
            )
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be at most {self.chunk_size}, the actions of prediction_horizon {self.prediction_horizon} from the "
                f"present step on with num_obs_steps {self.num_obs_steps}, not {self.num_action_steps}"
            )

    @property
    def chunk_size(self) -> int:
        """Predicted actions from the present step on."""
        return self.prediction_horizon - self.num_obs_steps + 1

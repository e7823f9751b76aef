"""Settings of imitation training, apart from its code so that the command line's help needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.utils.validation import (
    CheckedCfg,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
)

ALGOS: dict[str, str] = {
    "bc": "residual_rl.imitation.trainer:train",
    "diffusion": "residual_rl.imitation.trainer:train",
    "flow": "residual_rl.imitation.trainer:train",
    "act": "residual_rl.lerobot.act:train",
}
"""What trains each algorithm: `train(cfg: ImitateCfg, demos: Path, out: Path, resume: bool) -> dict`, named
`module:attribute`.

It trains on the demonstrations `demos` into the run folder `out`, or resumes it; writes
`training_summary.json` there when it is done; and returns what that holds: `finished`, `signal` (what stopped
it, or None), `steps`, `wall_time` [s], `best_success_rate` (None where it was not evaluated), `best_val_loss`
(None without a validation share), `task` (its id), `base_policy` (the id of what runs it, with the folder as
its checkpoint) and `model` (what the folder holds for it). Where a signal stopped it, it saves first, and
writes no summary. Settings that make no sense for an algorithm are left alone.
"""

_CPU = {"batch_size": 256, "learning_rate": 1e-3, "warmup_steps": 300, "eval_freq": 2_000, "save_freq": 1_000}
_TINY = {"channels": (32, 64), "kernel_size": 3, "time_dim": 64}

PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"channels": (32, 64, 128), "time_dim": 32},
    "tiny": _TINY,
    "cpu": {**_TINY, **_CPU, "hidden_sizes": (256, 256, 256), "total_steps": 10_000},
}
"""Settings that differ from the defaults. `full`: about 4.5 million parameters, for a GPU; `small`: 1
million; `tiny`: a quarter; `cpu`: tiny, with batches and steps for two cores."""
_OF_ALGO: dict[str, dict[str, Any]] = {
    "bc": {"num_obs_steps": 1, "chunk_size": 1, "num_action_steps": 1, "learning_rate": 1e-3},
    "diffusion": {"sampling_steps": 10},
    "flow": {"sampling_steps": 2},
    "act": {"num_obs_steps": 1, "chunk_size": 16},
}
_OF_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("bc", "cpu"): {"total_steps": 20_000},
    ("act", "full"): {"learning_rate": 1e-4},
    ("act", "cpu"): {"batch_size": 64, "total_steps": 6_000},
}


def check_sampling_steps(sampling_steps: int, diffusion_steps: int) -> None:
    """Raise `ConfigError` if a diffusion policy with `diffusion_steps` noise levels cannot be sampled in
    `sampling_steps` steps.

    A network that predicts noise cannot remove all of it in one step: the result is clipped noise.
    """
    if sampling_steps > diffusion_steps:
        raise ConfigError(
            f"sampling_steps must be at most diffusion_steps ({diffusion_steps}), not {sampling_steps}"
        )
    if sampling_steps < 2:
        raise ConfigError(
            f"sampling_steps must be at least 2 for diffusion, not {sampling_steps}: one step gives clipped"
            " noise; flow matching can be sampled in one"
        )


@dataclass(frozen=True)
class ImitateCfg(CheckedCfg):
    """Settings of imitation training."""

    algo: str = "flow"
    """bc (MLP, mean squared error), diffusion (Diffusion Policy), flow (flow matching), act (LeRobot's
    ACT)."""
    preset: str = "full"
    """Source of the other defaults: full (for a GPU), small, tiny, cpu. Without the flag: cpu on the cpu,
    otherwise full."""

    # --- the data ---
    n_episodes: PositiveInt | None = None
    """Number of demonstrations to use, from the first on. None: all."""
    obs_keys: Names = ("state",)
    """Named observations of the policy, joined in this order."""
    val_share: Annotated[float, Interval(ge=0.0, le=0.5)] = 0.1
    """Share of the episodes used for validation; 0 uses none."""
    pad_obs_to: int | None = None
    """Pad observations to this size with the constant pose of the robot's base at index 18, as in flat states
    of ManiSkill 2; the policy then pads wherever it is used. None: no padding."""
    normalize_actions: bool = True
    """Scale the range of the demonstrated actions to [-1, 1] for the network; otherwise the env's normalised
    actions are used."""

    # --- where it begins ---
    init_from: str = ""
    """Model to fine-tune, with its network, settings and normalisation: a folder or file of `imitate` or
    `convert`."""
    adapt_obs: bool = False
    """With --init-from: keep all weights but those that read the observations, so that the observations may
    differ."""

    # --- the policy ---
    num_obs_steps: PositiveInt = 2
    """Observations that it predicts from, including the present one."""
    chunk_size: PositiveInt = 16
    """Predicted actions, from the present step on."""
    num_action_steps: PositiveInt = 8
    """Actions of a chunk that are executed before the next prediction."""
    num_past_actions: NonNegativeInt = 0
    """Predicted actions before the present step. Public checkpoints of Diffusion Policy predict from the
    oldest observation on: num_obs_steps − 1."""
    hidden_sizes: tuple[PositiveInt, ...] = (512, 512, 512)
    """bc: width of each hidden layer."""
    channels: tuple[int, ...] = (64, 128, 256)
    """diffusion, flow: channels of the U-Net, one number a level, each a multiple of 8."""
    kernel_size: int = 5
    """diffusion, flow: kernel size of the convolutions [steps]."""
    time_dim: int = 96
    """diffusion, flow: size of the embeddings of the time and of the observations."""
    layout: Literal["own", "public"] = "own"
    """diffusion, flow: which U-Net: own, or public, that of the checkpoints of Diffusion Policy
    (`ConditionalUnet1D`)."""
    diffusion_steps: PositiveInt = 100
    """diffusion: noise levels in training."""
    sampling_steps: PositiveInt = 10
    """Denoising steps: diffusion's DDIM (at least 2), flow's Euler. Can be changed when the policy is
    used."""

    # --- the training ---
    total_steps: PositiveInt = 20_000
    """Gradient steps."""
    batch_size: PositiveInt = 1024
    """Windows in a gradient step."""
    learning_rate: PositiveFloat = 3e-4
    """Step size of Adam after the warm-up; it falls to 0 along a cosine."""
    warmup_steps: NonNegativeInt = 500
    """Steps over which the step size rises from 0."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound of the norm of the gradient of all parameters."""
    ema_power: PositiveFloat = 0.75
    """Decay of the averaged weights after step t: 1 − (1 + t)^−power, at most 0.9999."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, as in AdamW."""
    obs_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise on the normalised observations in training; validation has
    none."""
    amp: bool = False
    """Compute the loss in bfloat16 where it is safe (automatic mixed precision)."""
    compile: bool = False
    """Compile the network with torch.compile; meant for a GPU."""
    seed: NonNegativeInt = 1
    """Seed of the weights, the batches, the noise and the choice of validation episodes."""
    device: str = "cpu"
    """Device of the data and the network: cpu, cuda, cuda:1, …"""
    torch_threads: NonNegativeInt = 0
    """Threads of the network on a CPU; 0 means one a core, at most 4. Rounding depends on the number."""

    # --- evaluation and output ---
    log_freq: PositiveInt = 100
    """Steps between two rows of metrics."""
    val_freq: PositiveInt = 500
    """Steps between two validations."""
    eval_freq: NonNegativeInt = 1_000
    """Steps between two evaluations of success in simulation; 0 never simulates."""
    eval_episodes: PositiveInt = 32
    """Episodes of such an evaluation, on a fixed list of seeds."""
    eval_share: Share = 0.2
    """Largest share of the time for evaluations; one that would exceed it is skipped, except for the last."""
    num_threads: NonNegativeInt = 0
    """Simulator threads; 0 means one a CPU core."""
    save_freq: PositiveInt = 1_000
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo not in ALGOS:
            raise UnknownNameError("algorithm", self.algo, ALGOS)
        if self.preset not in PRESETS:
            raise UnknownNameError("preset", self.preset, PRESETS)
        if self.num_action_steps > self.chunk_size:
            raise ConfigError(
                f"num_action_steps must be at most chunk_size ({self.chunk_size}), not "
                f"{self.num_action_steps}"
            )
        if self.adapt_obs and not self.init_from:
            raise ConfigError(
                "adapt_obs needs a model whose weights are kept: give it with --init-from MODEL"
            )
        if self.algo == "diffusion":
            check_sampling_steps(self.sampling_steps, self.diffusion_steps)

    @classmethod
    def default(cls, algo: str = "flow", preset: str | None = None, device: str = "cpu") -> ImitateCfg:
        """The defaults of an algorithm: of a preset, or of the one for the device."""
        preset = preset or ("cpu" if device == "cpu" else "full")
        values = {**PRESETS.get(preset, {}), **_OF_ALGO.get(algo, {}), **_OF_BOTH.get((algo, preset), {})}
        return cls(**{**values, "algo": algo, "preset": preset, "device": device})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: tuples become lists."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def learning_rate_at(self, step: int) -> float:
        """The step size of gradient step `step` (from 0): a straight rise, then a half cosine down to 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

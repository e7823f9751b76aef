"""Training of ACT with LeRobot's policy, loss, processors and normalisation; the result is a LeRobot
checkpoint.

The policy observes joint positions and the task's `state` and predicts absolute joint targets, both in the
robot's own units. The data are those that `demos to-lerobot` would write, without writing them to disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.replay import make_env
from residual_rl.envs.spaces import conversion_inputs
from residual_rl.errors import ConfigError
from residual_rl.imitation.algorithms.base import Algorithm
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.model import LAST_FILE, ImitationModel, ModelSettings
from residual_rl.imitation.normalization import MIN_STD, Statistics
from residual_rl.imitation.success_evaluation import SuccessEvaluation
from residual_rl.imitation.trainer import Trainer
from residual_rl.imitation.windows import Windows, make_windows, split_episodes
from residual_rl.lerobot.checkpoint import PRETRAINED, LeRobotModel
from residual_rl.lerobot.dataset_export import commanded_targets, hardware_of
from residual_rl.lerobot.policy import ENVIRONMENT, JOINTS, LeRobotCfg, LeRobotPolicy
from residual_rl.lerobot.support import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    quiet,
    require_lerobot,
)
from residual_rl.runs.run_folder import RunFolder
from residual_rl.types import BasePolicy, State
from residual_rl.utils.files import replacing_folder, write_json

LAST = "last"
"""Folder of the policy at the end or interruption of training; the best one is in `pretrained_model`."""
IGNORED = 1e6
"""Standard deviation assigned to observations that hardly vary in the demonstrations, so that the policy
ignores them."""


@dataclass(frozen=True)
class ActSize:
    """Settings of ACT's network, with LeRobot's names."""

    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    use_vae: bool = True
    dropout: float = 0.1


SIZES = {
    "full": ActSize(),
    "small": ActSize(256, 8, 1024, 4, 1, use_vae=False),
    "tiny": ActSize(64, 4, 128, 2, 1, use_vae=False),
    "cpu": ActSize(128, 4, 512, 2, 1, use_vae=False),
}
"""Sizes by preset. `full` is that of Zhao et al. (2023), "Learning Fine-Grained Bimanual Manipulation with
Low-Cost Hardware"."""


def train(cfg: ImitateCfg, demos: Path, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train on the demonstrations `demos` in the run folder `out`, or resume; returns the summary, as
    `trainer.train`.

    Raises `MissingDependencyError` without LeRobot, and the errors of `trainer.train`.
    """
    require_lerobot("--algo act")
    default = ImitateCfg()
    for name in ("init_from", "pad_obs_to", "normalize_actions", "num_past_actions"):
        if getattr(cfg, name) != getattr(default, name):
            raise ConfigError(f"LeRobot's ACT does not support {name}: leave it out")
    if cfg.num_obs_steps != 1:
        raise ConfigError(f"ACT uses one observation: num_obs_steps must be 1, not {cfg.num_obs_steps}")
    if cfg.obs_keys != (ENVIRONMENT,):
        raise ConfigError(
            f"ACT observes joint positions and {ENVIRONMENT!r}: "
            f"obs_keys must be {ENVIRONMENT!r} only, not {cfg.obs_keys}"
        )
    return ActTrainer(cfg, demos, RunFolder(out)).run(str(demos), resume)


class Act(Algorithm):
    """LeRobot's ACT as an algorithm of the trainer.

    Observations are J joint positions followed by the environment's state, actions are J joint targets.

    Args:
        joints: J.
        chunk_size: K.
        num_action_steps: number of actions executed of each chunk.
        size: the fields of `ActSize`.

    Raises `MissingDependencyError` without LeRobot.
    """

    stochastic = False

    def __init__(self, joints: int, chunk_size: int, num_action_steps: int, size: dict[str, Any]):
        require_lerobot("an ACT model")
        self._joints = joints
        self._chunk_size = chunk_size
        self._num_action_steps = num_action_steps
        self._size = size

    def config(self, obs_dim: int) -> Any:
        """LeRobot's settings of the policy, for the CPU."""
        from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
        from lerobot.policies.act.configuration_act import ACTConfig

        return ACTConfig(
            input_features={
                STATE: PolicyFeature(FeatureType.STATE, (self._joints,)),
                ENVIRONMENT_STATE: PolicyFeature(FeatureType.ENV, (obs_dim - self._joints,)),
            },
            output_features={ACTION: PolicyFeature(FeatureType.ACTION, (self._joints,))},
            normalization_mapping=dict.fromkeys(("STATE", "ENV", "ACTION"), NormalizationMode.MEAN_STD),
            chunk_size=self._chunk_size,
            n_action_steps=self._num_action_steps,
            pretrained_backbone_weights=None,
            push_to_hub=False,
            device="cpu",
            **self._size,
        )

    def make_network(self, obs_dim: int, chunk_size: int, action_dim: int) -> nn.Module:  # noqa: ARG002
        from lerobot.policies.act.modeling_act import ACTPolicy

        network: nn.Module = ACTPolicy(self.config(obs_dim))
        return network

    def loss(self, network: Any, obs: Tensor, actions: Tensor, valid: Tensor, generator: Generator) -> Tensor:
        batch = {**self.split(obs), ACTION: actions, "action_is_pad": ~valid}
        if not network.training:  # LeRobot's loss has a term that exists only in training mode
            error = (network.model(batch)[0] - actions).abs().mean(-1)
            return (error * valid).mean()
        with _global_generators_seeded_from(generator):
            loss: Tensor = network(batch)[0]
        return loss

    def sample(self, network: Any, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:  # noqa: ARG002
        actions: Tensor = network.predict_action_chunk(self.split(obs))
        return actions

    def split(self, obs: Tensor) -> dict[str, Tensor]:
        """Split observations [b, D] into features."""
        return {STATE: obs[:, : self._joints], ENVIRONMENT_STATE: obs[:, self._joints :]}

    def settings(self) -> dict[str, Any]:
        return {
            "joints": self._joints,
            "chunk_size": self._chunk_size,
            "num_action_steps": self._num_action_steps,
            "size": self._size,
        }


class ActModel(ImitationModel):
    """ACT with its processors, saved in LeRobot's format."""

    processors: tuple[Any, Any]
    """LeRobot's pre- and post-processor."""

    def save(self, path: Path) -> None:
        """Write a LeRobot checkpoint in place of the model file `path` of the other algorithms. Raises
        `WriteError`."""
        target = path.parent / (LAST if path.name == LAST_FILE else PRETRAINED)
        with replacing_folder(target, replace=True) as folder:
            folder.mkdir()
            self.lerobot().save(folder)

    def lerobot(self) -> LeRobotModel:
        """The policy and its processors."""
        return LeRobotModel(self.network, *self.processors, self.name)


class ActTrainer(Trainer):
    """The trainer of the other algorithms, with LeRobot's data, processors and checkpoints."""

    def run(self, demos: str, resume: bool) -> dict[str, Any]:
        """Train or resume, and close the envs; see `trainer.train`."""
        with contextlib.closing(self):
            config = {"demos": demos, **self.cfg.to_dict()}
            with self.folder.resume() if resume else self.folder.start(config):
                if resume:
                    self.resume()
                    write_json(self.folder.config_file, config)
                return self.learn()

    def model(self) -> ActModel:
        step = self.progress.step
        model = ActModel(self.settings, self.statistics, step=step, name="the policy in training")
        weights = {name: tensor.cpu() for name, tensor in self.ema.weights.items()}
        model.network.load_state_dict(weights, strict=False)  # the buffers never change
        model.processors = self._processors
        return model

    def policy(self) -> BasePolicy:
        assert self.evaluation is not None
        model = self.model().lerobot()
        return LeRobotPolicy(LeRobotCfg(), model, self.evaluation.env)

    def _read(self, path: Path) -> None:
        # Read the episodes, with joints in the robot's units.
        cfg = self.cfg
        with Demonstrations.open(path) as demos, contextlib.ExitStack() as stack:
            count = len(demos) if cfg.n_episodes is None else cfg.n_episodes
            if not 1 <= count <= len(demos):
                raise ConfigError(f"n_episodes is {count}, but {path} has {len(demos)} episodes")
            self.evaluation: SuccessEvaluation | None = None
            if cfg.eval_freq:
                self.evaluation = SuccessEvaluation(demos, cfg.eval_episodes, cfg.num_threads, cfg.eval_share)
                env = self.evaluation.env
            else:
                env = stack.enter_context(contextlib.closing(make_env(demos, 1, 1)))
            hardware = hardware_of(env, demos.task_id)
            names = {JOINTS, ENVIRONMENT, "joint_target", *conversion_inputs(env)}
            episodes = []
            for i in range(count):
                demo = demos.episode(i, names)
                joints = hardware.to_hardware(torch.from_numpy(demo.obs[JOINTS]))
                targets = hardware.to_hardware(commanded_targets(demo, env, "intended"))
                episodes.append(
                    ({JOINTS: joints.numpy(), ENVIRONMENT: demo.obs[ENVIRONMENT]}, targets.numpy())
                )
            shapes = {key: tuple(demos.obs_shapes[key]) for key in (JOINTS, ENVIRONMENT)}
            task_id, task_settings = demos.task_id, demos.task_settings

        # Settings of the model.
        joint_count = len(hardware.joint_names)
        network = Act(joint_count, cfg.chunk_size, cfg.num_action_steps, asdict(SIZES[cfg.preset])).settings()
        self.settings = ModelSettings(
            algo="act",
            network=network,
            obs_keys=(JOINTS, ENVIRONMENT),
            obs_shapes=shapes,
            action_dim=joint_count,
            num_obs_steps=1,
            chunk_size=cfg.chunk_size,
            num_action_steps=cfg.num_action_steps,
            sampling_steps=1,
            task_id=task_id,
            task_settings=task_settings,
        )

        # Split the episodes, and normalise with the statistics of the training episodes.
        train_episodes, val_episodes = split_episodes(count, cfg.val_share, cfg.seed)
        self.episodes = {"train": len(train_episodes), "val": len(val_episodes)}
        windows, val_windows = (
            make_windows([episodes[i] for i in chosen], self.settings.obs_keys) if chosen else None
            for chosen in (train_episodes, val_episodes)
        )
        assert windows is not None
        self.statistics = Statistics.of(windows.obs, windows.actions)
        self._processors = _processors(Act(**network), windows)
        self.windows = self._normalized(windows)
        self.val_windows = None if val_windows is None else self._normalized(val_windows)

    def _normalized(self, windows: Windows) -> Windows:
        """The windows after LeRobot's preprocessor, on the training's device."""
        act = Act(**self.settings.network)
        batch = self._processors[0]({**act.split(windows.obs), ACTION: windows.actions})
        obs = torch.cat([batch[STATE], batch[ENVIRONMENT_STATE]], 1)
        moved = {name: getattr(windows, name).to(self.device) for name in ("first", "last")}
        return replace(windows, obs=obs.to(self.device), actions=batch[ACTION].to(self.device), **moved)

    def _finish(self, stopped_by: int | None) -> dict[str, Any]:
        summary = {**super()._finish(stopped_by), "model": PRETRAINED, "base_policy": "lerobot"}
        if summary["finished"]:
            write_json(self.folder.summary_file, summary)
        return summary


def _processors(act: Act, windows: Windows) -> tuple[Any, Any]:
    """LeRobot's pre- and post-processor, with the statistics of the training episodes."""
    from lerobot.policies.factory import make_pre_post_processors

    statistics = {name: _statistics(value, IGNORED) for name, value in act.split(windows.obs).items()}
    statistics[ACTION] = _statistics(windows.actions, MIN_STD)
    with quiet():
        pre, post = make_pre_post_processors(act.config(windows.obs.shape[1]), dataset_stats=statistics)
    return pre, post


def _statistics(values: Tensor, least_std: float) -> State:
    """Statistics of a feature [N, F] with LeRobot's names; a std below `normalization.MIN_STD` becomes
    `least_std`."""
    std, mean = torch.std_mean(values.double(), 0, correction=0)
    std = torch.where(std < MIN_STD, least_std, std)
    return {"mean": mean.float(), "std": std.float(), "min": values.amin(0), "max": values.amax(0)}


@contextlib.contextmanager
def _global_generators_seeded_from(generator: Generator) -> Iterator[None]:
    """Seed torch's global generators from `generator`, which advances, and restore them after the block."""
    device = generator.device
    seed = int(torch.randint(1 << 62, (1,), generator=generator, device=device))
    gpus: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        if gpus:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield

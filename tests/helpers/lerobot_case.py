"""Tiny LeRobot policies with random weights and made-up statistics, and short demonstrations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.demos.episode import Demo
from residual_rl.demos.writer import DemoWriter, describe
from residual_rl.factory import make_vec_env

JOINTS, STATE_DIM = 6, 25
LOW, HIGH = -0.174533, 1.74533
"""The gripper's range [rad]: closed, open."""
TINY: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 8,
        "n_action_steps": 4,
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 32,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "pretrained_backbone_weights": None,
    },
    "diffusion": {
        "horizon": 8,
        "n_action_steps": 3,
        "down_dims": (8, 16),
        "n_groups": 4,
        "diffusion_step_embed_dim": 8,
        "num_train_timesteps": 4,
        "pretrained_backbone_weights": None,
    },
}
ALL_MEAN_STD = dict.fromkeys(("STATE", "ENV", "VISUAL", "ACTION"), NormalizationMode.MEAN_STD)


def make_checkpoint(
    folder: Path, kind: str = "act", *, images: dict[str, tuple[int, int]] | None = None, **values: Any
) -> Path:
    """A policy in `folder` that observes joint positions, and the env's `state` or images of each camera in
    `images` (height, width).

    Its actions vary by about 20 degrees around the arm's home position.
    """
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (values.pop("joints", JOINTS),))}
    if images is None:
        features["observation.environment_state"] = PolicyFeature(
            FeatureType.ENV, (values.pop("state_dim", STATE_DIM),)
        )
    for camera, (height, width) in (images or {}).items():
        features[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, height, width))
    action = {"action": PolicyFeature(FeatureType.ACTION, (values.pop("actions", JOINTS),))}
    config = make_policy_config(
        kind,
        **{**TINY[kind], "normalization_mapping": ALL_MEAN_STD, "device": "cpu", **values},
        input_features=features,
        output_features=action,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        policy = get_policy_class(kind)(config)
    preprocessor, postprocessor = make_pre_post_processors(
        config, dataset_stats=statistics({**features, **action})
    )
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(folder)
    return folder


def statistics(features: dict[str, PolicyFeature]) -> dict[str, dict[str, torch.Tensor]]:
    """Mean 10 and standard deviation 20 for quantities in degrees; 0.1 and 0.5 for others."""
    made = {}
    for name, feature in features.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        mean, std = (10.0, 20.0) if name in ("observation.state", "action") else (0.1, 0.5)
        made[name] = {"mean": torch.full(shape, mean), "std": torch.full(shape, std)}
    return made


def make_case(folder: Path, kind: str = "act", **values: Any) -> LeRobotCfg:
    """A policy in `folder`, and the settings of the base policy that runs it."""
    return LeRobotCfg(checkpoint=str(make_checkpoint(folder, kind, **values)))


def write_demos(path: Path, episodes: int = 4, steps: int = 6, **settings: Any) -> Path:
    """Episodes of so101-paper with slow, smooth actions, in the form that `demos collect` stores."""
    env = make_vec_env("so101-paper", episodes, num_threads=1, **settings)
    obs, info = env.reset(seed=list(range(40_000_000, 40_000_000 + episodes)))
    draws = {name: value.numpy() for name, value in env.episode.items()}
    seen, actions, rewards = [obs], [], []
    for step in range(steps):
        phase = 0.3 * step + torch.arange(episodes)[:, None] + torch.arange(len(env.action_unit))
        wanted = obs["joint_target"].double() + 0.01 * torch.sin(phase)
        actions.append(env.targets_to_actions(wanted[:, None], obs)[:, 0])
        obs, reward, *_ = env.step(actions[-1])
        seen.append(obs)
        rewards.append(reward)
    info = describe(
        "so101-paper",
        dataclasses.asdict(env.task.cfg),  # type: ignore[attr-defined]
        max_episode_steps=env.max_episode_steps,
        control_hz=env.control_hz,
        source_type="policy",
        source_desc="a test",
    )
    ends = np.arange(steps) == steps - 1
    with DemoWriter(path, info) as writer:
        for i in range(episodes):
            writer.add(
                Demo(
                    actions=torch.stack(actions, 1)[i].numpy(),
                    obs={name: torch.stack([o[name] for o in seen], 1)[i].numpy() for name in obs},
                    terminated=np.zeros(steps, bool),
                    truncated=ends,
                    rewards=torch.stack(rewards, 1)[i].numpy(),
                    success=np.zeros(steps, bool),
                    seed=40_000_000 + i,
                    draws={name: value[i] for name, value in draws.items()},
                )
            )
    env.close()
    return path


def in_hardware(angles: Any) -> np.ndarray:
    """Joint angles [..., 6] in [rad], converted to degrees and, for the gripper, per cent of its range."""
    values = np.rad2deg(np.asarray(angles, np.float64))
    values[..., 5] = 100.0 * (np.asarray(angles, np.float64)[..., 5] - LOW) / (HIGH - LOW)
    return values

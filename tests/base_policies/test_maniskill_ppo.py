"""State dicts of ManiSkill's PPO baselines as base policies: actions equal those of the networks, and errors
are clear."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.errors import CheckpointError, ConfigError

EVERYONE = torch.arange(3)
SIDE = 40


def point_env(images: tuple[str, ...] = (), proprioception: int = 0) -> fakes.PointEnv:
    """An env with a `state` of 5, actions of 2, and optionally cameras and proprioception."""
    env = fakes.PointEnv(fakes.PointCfg(), 3)
    observed: Any = env.single_observation_space
    for name in images:
        observed.spaces[name] = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    if proprioception:
        observed.spaces["proprioception"] = spaces.Box(-np.inf, np.inf, (proprioception,), np.float32)
    return env


def mlp(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class StateAgent(nn.Module):
    """A network with the layer names of `ppo.py`."""

    def __init__(self, inputs: int = 5, actions: int = 2):
        super().__init__()
        self.critic = mlp([inputs, 256, 256, 256, 1], nn.Tanh)
        self.actor_mean = mlp([inputs, 256, 256, 256, actions], nn.Tanh)
        self.actor_logstd = nn.Parameter(torch.full((1, actions), -0.5))


class ImageAgent(nn.Module):
    """A network with the layer names of `ppo_rgb.py`."""

    def __init__(self, cameras: int = 1, numbers: int = 4, flat: int = 64):
        super().__init__()
        kernels, channels = [(8, 4), (4, 2), (3, 1)], [3 * cameras, 32, 64, 64]
        layers: list[nn.Module] = []
        for (kernel, stride), before, after in zip(kernels, channels, channels[1:], strict=False):
            layers += [nn.Conv2d(before, after, kernel, stride), nn.ReLU()]
        extractors: dict[str, nn.Module] = {
            "rgb": nn.Sequential(
                nn.Sequential(*layers, nn.Flatten()), nn.Sequential(nn.Linear(flat, 256), nn.ReLU())
            )
        }
        if numbers:
            extractors["state"] = nn.Linear(numbers, 256)
        self.feature_net = nn.Module()
        self.feature_net.extractors = nn.ModuleDict(extractors)
        latent = 256 * len(extractors)
        self.critic, self.actor_mean = mlp([latent, 512, 1], nn.ReLU), mlp([latent, 512, 2], nn.ReLU)
        self.actor_logstd = nn.Parameter(torch.full((1, 2), -0.5))

    def mean(self, images: Tensor, numbers: Tensor | None) -> Tensor:
        extractors: Any = self.feature_net.extractors
        parts = [extractors["rgb"](images.permute(0, 3, 1, 2).float() / 255)]
        if numbers is not None:
            parts.append(extractors["state"](numbers))
        result: Tensor = self.actor_mean(torch.cat(parts, 1))
        return result


def save(agent: nn.Module, path: Path) -> Path:
    torch.save(agent.state_dict(), path)
    return path


def policy_of(path: Path, env: fakes.PointEnv | None = None, trust: bool = True, **settings: Any) -> Any:
    return make_base_policy("model", ModelCfg(str(path), trust, **settings), env or point_env())


def test_maniskill_ppo_policy__equals_the_actor_for_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = StateAgent()
    with torch.no_grad():
        agent.actor_mean[6].weight *= 20  # so that some actions are clipped
    policy = policy_of(save(agent, tmp_path / "ckpt_1.pt"))
    obs = {"state": torch.randn(3, 5) * 3}
    with torch.no_grad():
        mean = agent.actor_mean(obs["state"])
    assert (mean.abs() > 1).any()
    assert (mean.abs() < 1).any()
    torch.testing.assert_close(policy.act(obs), mean.clamp(-1, 1), atol=1e-5, rtol=0)
    alone = torch.cat(
        [policy.policy.predict_action_chunk({"state": obs["state"][[w]]}, EVERYONE[[w]]) for w in range(3)]
    )
    assert torch.equal(alone[:, 0], policy.act(obs))


@pytest.mark.parametrize("numbers", [4, 0])
def test_maniskill_ppo_policy__equals_the_actor_for_images(numbers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = ImageAgent(numbers=numbers)
    policy = policy_of(save(agent, tmp_path / "ckpt_1.pt"), point_env(("base_camera",), 4))
    obs = {
        "base_camera": torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8),
        "proprioception": torch.randn(3, 4),
    }
    with torch.no_grad():
        mean = agent.mean(obs["base_camera"], obs["proprioception"] if numbers else None)
    assert set(policy.policy.inputs) == ({"base_camera", "proprioception"} if numbers else {"base_camera"})
    torch.testing.assert_close(policy.act(obs), mean.clamp(-1, 1), atol=1e-5, rtol=0)


def test_input_keys__set_the_order_of_the_cameras(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent, env = ImageAgent(cameras=2), point_env(("hand", "base"), 4)
    path = save(agent, tmp_path / "ckpt_1.pt")
    with pytest.raises(
        ConfigError, match=r"has the cameras: hand, base; name those .* with --base.input-keys"
    ):
        policy_of(path, env)
    obs = {name: torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8) for name in ("hand", "base")}
    obs["proprioception"] = torch.randn(3, 4)
    policy = policy_of(path, env, input_keys=("base", "proprioception", "hand"))
    with torch.no_grad():
        mean = agent.mean(torch.cat([obs["base"], obs["hand"]], 3), obs["proprioception"])
    torch.testing.assert_close(policy.act(obs), mean.clamp(-1, 1), atol=1e-5, rtol=0)


def refused(match: str, *args: Any, **settings: Any) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=match) as caught:
        policy_of(*args, **settings)
    assert "\n" not in str(caught.value)


def test_maniskill_ppo_policy__different_sizes_are_an_error_with_both(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    name = re.escape(str(path))
    refused(
        f"{name} was trained on 42 numbers of state; this env gives it 5 \\(state\\)",
        save(StateAgent(42), path),
    )
    refused("predicts actions of 8 numbers; this env takes 2", save(StateAgent(5, 8), path))
    refused(
        "trained on 4 numbers of state; this env gives it 6 \\(proprioception\\)",
        save(ImageAgent(), path),
        point_env(("a",), 6),
    )
    refused(
        "trained on images of 6 channels; this env gives it 3 \\(a\\)",
        save(ImageAgent(2), path),
        point_env(("a",), 4),
    )
    refused(
        "1024 features .* this env's, of 40 x 40 px, have 64: set --image-size",
        save(ImageAgent(flat=1024), path),
        point_env(("a",), 4),
    )
    refused("has the cameras: none: choose --obs-mode rgb", save(ImageAgent(), path))
    refused("needs the observation 'goal'; the env has", save(StateAgent(), path), input_keys=("goal",))
    refused(
        "does not use images: leave a out of",
        save(StateAgent(), path),
        point_env(("a",)),
        input_keys=("state", "a"),
    )


def test_trust_checkpoint__is_required_for_a_state_dict(tmp_path: Path) -> None:
    refused(
        "is a file of torch.save, which is a pickle, .*--trust-checkpoint",
        save(StateAgent(), tmp_path / "a.pt"),
        trust=False,
    )


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-here"),))


def test_read_state_dict__other_files_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it.pt"
    torch.save({"a": Evil()}, path)
    refused("cannot be read as a state dict", path)  # even with consent, code does not run
    assert not Path("evil-was-here").exists()
    torch.save({"step": 3}, path)
    refused("something other than tensors by name", path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    refused(
        "is not an actor of ManiSkill's PPO: expected actor_mean.0, actor_mean.2, …; it has bias, weight",
        path,
    )
    state = StateAgent().state_dict()
    del state["actor_mean.2.bias"]
    torch.save(state, path)
    refused("the layer actor_mean.2 is missing or has another shape", path)
    state = StateAgent().state_dict()
    state["actor_mean.4.weight"] = state["actor_mean.4.weight"][:, :100]
    torch.save(state, path)
    refused("is damaged: a layer of actor_mean has 100 inputs, and the one before it 256 outputs", path)
    path.write_bytes(path.read_bytes()[:500])
    refused("it.pt cannot be read as a state dict", path)

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fakes
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_runs import slow

from residual_rl.base_policies.model import ModelCfg
from residual_rl.base_policies.model_policy import make
from residual_rl.base_policies.sb3_normalization import ScaleCheck
from residual_rl.errors import CheckpointError, ConfigError

SCALE = np.array([0.01, 0.02, 0.05, 0.1, 3.0], np.float32)
OFFSET = np.array([0.03, -0.02, 0.0, 0.1, 20.0], np.float32)


class Noise(gymnasium.Env[Any, Any]):
    """Observes noise around OFFSET, of a size of SCALE, as a vector or as a dict."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, named: bool = False):
        self._named = named
        vector = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.observation_space = spaces.Dict({"state": vector}) if named else vector  # type: ignore[assignment]

    def _obs(self) -> Any:
        obs = (OFFSET + SCALE * self.np_random.standard_normal(5)).astype(np.float32)
        return {"state": obs} if self._named else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        return self._obs(), 0.0, False, False, {}


def train(folder: Path, kind: Any = PPO, normalize: bool = True, named: bool = False) -> Any:
    """A model and its statistics, in files."""
    env: Any = DummyVecEnv([lambda: Noise(named)] * (4 if kind is PPO else 1))
    env.seed(1)
    if normalize:
        env = VecNormalize(env)
        env.save(folder / "vecnormalize.pkl")
    options = (
        {"n_steps": 16, "batch_size": 16} if kind is PPO else {"learning_starts": 48, "buffer_size": 100}
    )
    policy = "MultiInputPolicy" if named else "MlpPolicy"
    model = kind(policy, env, device="cpu", seed=1, **options).learn(64)
    for name, parameter in model.policy.named_parameters():
        if "action_net" in name or "mu" in name:
            parameter.data.normal_(0.0, 2.0)
    model.save(folder / "model.zip")
    if normalize:
        env.save(folder / "vecnormalize.pkl")
    return model, env


def observations(num: int = 8) -> torch.Tensor:
    noise = np.random.default_rng(3).standard_normal((num, 5))
    return torch.from_numpy((OFFSET + SCALE * noise).astype(np.float32))


def policy_of(folder: Path, **settings: Any) -> Any:
    cfg = ModelCfg(str(folder / "model.zip"), trust_checkpoint=True, **settings)
    return make(cfg, fakes.PointEnv(fakes.PointCfg(), 3))


def act(policy: Any, obs: torch.Tensor) -> np.ndarray:
    chunk = policy.predict_action_chunk({"state": obs}, torch.arange(len(obs)))
    return np.asarray(chunk[:, 0].clamp(-1.0, 1.0))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kind", [PPO, *slow(SAC)])
def test_vec_normalize__equals_stable_baselines3(kind: Any, named: bool, tmp_path: Path) -> None:
    model, env = train(tmp_path, kind, named=named)
    policy = policy_of(tmp_path, vec_normalize=str(tmp_path / "vecnormalize.pkl"))
    raw = observations()
    given = env.normalize_obs({"state": raw.numpy()} if named else raw.numpy())
    expected, _ = model.predict(given, deterministic=True)
    np.testing.assert_allclose(act(policy, raw), expected, atol=1e-5)
    assert np.abs(expected - act(policy_of(tmp_path), raw)).max() > 0.1


def test_vec_normalize__forgotten_statistics_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path)
    policy_of(tmp_path)
    assert "was trained with VecNormalize" in caplog.text
    assert "--vec-normalize FILE" in caplog.text


@pytest.mark.parametrize("kind", [PPO, *slow(SAC)])
@pytest.mark.parametrize(("normalize", "given", "warns"), [(1, 0, True), (1, 1, False), (0, 0, False)])
def test_scale_check__warns_where_the_statistics_are_missing(
    kind: Any, normalize: bool, given: bool, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, kind, normalize=bool(normalize))
    statistics = {"vec_normalize": str(tmp_path / "vecnormalize.pkl")} if given else {}
    policy = policy_of(tmp_path, **statistics)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            act(policy, observations())
    assert [("far from those of its training" in r.getMessage()) for r in caplog.records] == [True] * warns


def test_scale_check__compares_root_mean_squares(caplog: pytest.LogCaptureFixture) -> None:
    check = ScaleCheck(np.array([[1.0, 2.0], [1.0, 2.0]]), "model.zip")
    for _ in range(50):
        check.update(torch.tensor([[6.0, 12.0]]))
    assert "the observations of model.zip are far" in caplog.text
    assert "a factor of 6 in the median" in caplog.text


def test_vec_normalize__file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    statistics = tmp_path / "vecnormalize.pkl"
    with pytest.raises(ConfigError, match="add --trust-checkpoint"):
        make(
            ModelCfg(str(tmp_path / "model.zip"), vec_normalize=str(statistics)),
            fakes.PointEnv(fakes.PointCfg(), 3),
        )
    (tmp_path / "broken.pkl").write_bytes(statistics.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"broken\.pkl cannot be read as statistics of VecNormalize"):
        policy_of(tmp_path, vec_normalize=str(tmp_path / "broken.pkl"))
    other = VecNormalize(DummyVecEnv([lambda: SpacesOf(3)]))
    other.save(str(tmp_path / "other.pkl"))
    with pytest.raises(ConfigError, match=r"of observations of shape \(3,\); the model observes \(5,"):
        policy_of(tmp_path, vec_normalize=str(tmp_path / "other.pkl"))
    run = tmp_path / "policy.safetensors"
    run.touch()
    with pytest.raises(ConfigError, match="vec_normalize is for a Stable-Baselines3 model"):
        make(ModelCfg(str(run), vec_normalize=str(statistics)), fakes.PointEnv(fakes.PointCfg(), 3))


class SpacesOf(Noise):
    """Observes fewer numbers."""

    def __init__(self, size: int):
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

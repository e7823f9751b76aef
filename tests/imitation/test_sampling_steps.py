"""The number of denoising steps of diffusion policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import il_case
import pytest

from residual_rl.base_policies.il import ILCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.imitation.config import ImitateCfg
from residual_rl.imitation.convert_cfg import ConvertCfg
from residual_rl.imitation.model import MODEL_FILE
from residual_rl.imitation.policy import make


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", 1, num_threads=1)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1, "sampling_steps must be at least 2 for diffusion, not 1: one step gives clipped noise"),
        (11, "sampling_steps must be at most diffusion_steps \\(10\\), not 11"),
    ],
)
def test_sampling_steps__what_diffusion_cannot_use_is_rejected_at_construction(
    steps: int, message: str, env: VecEnv, tmp_path: Path
) -> None:
    for folder in ("model", "own"):
        (tmp_path / folder).mkdir()
    model = il_case.model("diffusion", network={**il_case.NETWORKS["diffusion"], "diffusion_steps": 10})
    model.save(tmp_path / "model" / MODEL_FILE)
    with pytest.raises(ConfigError, match=f"{MODEL_FILE}: {message}"):
        make(ILCfg(checkpoint=str(tmp_path / "model"), sampling_steps=steps), env)
    # The same for the model's own value, which comes from a file
    model.settings = dataclasses.replace(model.settings, sampling_steps=steps)
    model.save(tmp_path / "own" / MODEL_FILE)
    with pytest.raises(ConfigError, match=message):
        make(ILCfg(checkpoint=str(tmp_path / "own")), env)
    make(ILCfg(checkpoint=str(tmp_path / "own"), sampling_steps=2), env)
    for cfg in (ImitateCfg, ConvertCfg):
        algo = {"algo": "diffusion"} if cfg is ImitateCfg else {}
        with pytest.raises(ConfigError, match=message):
            cfg(sampling_steps=steps, diffusion_steps=10, **algo)  # type: ignore[arg-type]


def test_sampling_steps__flow_and_bc_take_one(env: VecEnv, tmp_path: Path) -> None:
    for algo in ("flow", "bc"):
        (tmp_path / algo).mkdir()
        il_case.model(algo).save(tmp_path / algo / MODEL_FILE)
        make(ILCfg(checkpoint=str(tmp_path / algo), sampling_steps=1), env)

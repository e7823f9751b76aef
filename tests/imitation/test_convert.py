"""Conversion of public Diffusion Policy checkpoints to base policies, and errors for other files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import tiny_runs
import torch
import unet_case
from gymnasium import spaces
from torch import Tensor

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.il import ILCfg
from residual_rl.cli.main import main
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.imitation.convert import read_public_unet
from residual_rl.imitation.convert_cfg import ConvertCfg
from residual_rl.imitation.model import MODEL_FILE, ImitationModel
from residual_rl.imitation.policy import ILPolicy

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return unet_case.write(tmp_path / "best.pt")


def convert(path: Path, **values: Any) -> ImitationModel:
    return read_public_unet(path, ConvertCfg(**values), trusted=True)


def test_read_public_unet__derives_sizes_from_the_tensors(checkpoint: Path) -> None:
    settings = convert(checkpoint, control_mode="pd_ee_delta_pose", task="Peg").settings
    assert settings.network == {
        "channels": [8, 16],
        "kernel_size": 3,
        "time_dim": 8,
        "diffusion_steps": 100,
        "layout": "public",
    }
    assert (settings.obs_shapes, settings.obs_keys, settings.action_dim) == ({"state": (3,)}, ("state",), 2)
    # 16 actions from the older of two observations on are 15 from the current one, of which 8 are executed.
    assert (
        settings.num_obs_steps,
        settings.num_past_actions,
        settings.chunk_size,
        settings.num_action_steps,
    ) == (2, 1, 15, 8)
    assert settings.num_predicted_actions == 16
    assert (settings.task_id, settings.task_settings) == ("Peg", {"control_mode": "pd_ee_delta_pose"})


def ddim(weights: dict[str, Tensor], obs: Tensor, x: Tensor, steps: int) -> Tensor:
    """Song et al., 2021, eq. 12 with σ = 0, on the noise levels of Nichol & Dhariwal's squared cosine, clean
    estimates clipped."""

    def level(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = np.cumprod([1.0 - min(1.0 - level((i + 1) / 100) / level(i / 100), 0.999) for i in range(100)])
    for i in reversed(range(steps)):
        now, before = kept[i * 100 // steps], kept[(i - 1) * 100 // steps] if i else 1.0
        epsilon = unet_case.forward(weights, x, torch.full((len(x),), i * 100 // steps), obs)
        clean = ((x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)).clamp(-1, 1)
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * epsilon
    return x


def test_read_public_unet__model_acts_like_the_published_policy(checkpoint: Path, tmp_path: Path) -> None:
    """Observations are raw, oldest first; actions start at index num_obs_steps − 1 and are clipped."""
    convert(checkpoint).save(tmp_path / MODEL_FILE)
    model = ImitationModel.load(tmp_path).to(CPU, torch.float64)
    obs, noise = 20.0 * torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 16, 2, dtype=torch.float64)
    expected = ddim(unet_case.tensors(0), obs.flatten(1), noise, 10)[:, 1:].clamp(-1, 1)
    assert obs.abs().max() > 20.0
    torch.testing.assert_close(model.sample(obs, noise), expected, rtol=1e-4, atol=1e-4)
    # Not all actions are clipped.
    assert ((expected.abs() < 1.0) & (expected.abs() > 0.01)).float().mean() > 0.2


def test_read_public_unet__stores_identity_statistics(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint).save(tmp_path / MODEL_FILE)
    statistics = ImitationModel.load(tmp_path).statistics
    assert (statistics.obs_mean.tolist(), statistics.obs_std.tolist()) == ([0.0] * 3, [1.0] * 3)
    assert (statistics.action_low.tolist(), statistics.action_high.tolist()) == ([-1.0] * 2, [1.0] * 2)
    obs = torch.tensor([[1e6, -0.3, 0.0]])
    assert torch.equal(statistics.normalize_obs(obs), obs)


@pytest.mark.parametrize(
    ("payload", "weights", "seed"),
    [
        (unet_case.saved(), None, 0),  # the averaged network
        (unet_case.saved(), "agent/noise_pred_net", 1),
        ({"agent": unet_case.saved()["agent"]}, None, 1),
        (unet_case.saved("")["agent"], None, 1),
        (unet_case.saved()["agent"], None, 1),
        ({"step": 3, "args": {"lr": 1e-4}, "model": unet_case.saved("")["agent"]}, None, 1),
        ({**unet_case.saved("net.")["agent"], **unet_case.saved("ema_net.")["ema_agent"]}, None, 0),
        ({**unet_case.saved("net.")["agent"], **unet_case.saved("ema_net.")["ema_agent"]}, "net", 1),
        ({name: tensor.half() for name, tensor in unet_case.tensors(1).items()}, None, 1),
    ],
)
def test_read_public_unet__finds_the_network_at_any_depth(
    payload: Any, weights: str | None, seed: int, tmp_path: Path
) -> None:
    model = convert(unet_case.write(tmp_path / "x.pt", payload), weights=weights)
    for name, tensor in unet_case.tensors(seed).items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_read_public_unet__pads_observations_for_maniskill_2(tmp_path: Path) -> None:
    wide = unet_case.tensors()
    for name in [name for name in wide if name.endswith("cond_encoder.1.weight")]:
        wide[name] = torch.randn(len(wide[name]), 8 + 2 * 50)
    path = unet_case.write(tmp_path / "peg.pt", wide)
    plain, padded = convert(path), convert(path, pad_obs_to=50)
    assert (plain.settings.obs_shapes, padded.settings.obs_shapes) == ({"state": (50,)}, {"state": (43,)})
    obs, noise = torch.randn(3, 2, 43), torch.randn(3, 16, 2)
    pose = torch.tensor([-0.615, 0, 0, 1, 0, 0, 0]).expand(3, 2, 7)
    as_before = torch.cat([obs[..., :18], pose, obs[..., 18:]], -1)
    assert torch.equal(padded.sample(obs, noise), plain.sample(as_before, noise))
    zeros = torch.cat([obs[..., :18], 0.0 * pose, obs[..., 18:]], -1)
    assert not torch.allclose(padded.sample(obs, noise), plain.sample(zeros, noise), atol=1e-2)
    with pytest.raises(ConfigError, match="has observations of size 50 with num_obs_steps 2, not 43"):
        convert(path, pad_obs_to=43)
    narrow = unet_case.write(tmp_path / "narrow.pt")
    with pytest.raises(
        ConfigError,
        match=r"observations of size 3, too small for the robot's base pose .7 numbers. at index 18",
    ):
        convert(narrow, pad_obs_to=3)


# --- errors -------------------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    weights: dict[str, Any] = {
        f"noise_pred_net.{name}": tensor for name, tensor in unet_case.tensors().items()
    }
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            changed(lambda w: w.pop("noise_pred_net.mid_modules.1.cond_encoder.1.bias")),
            (
                "x.pt (noise_pred_net) is not the public conditional U-Net of these sizes; "
                "missing: mid_modules.1.cond_encoder.1.bias"
            ),
        ),
        (
            changed(lambda w: w.update({"noise_pred_net.down_modules.0.0.local.weight": torch.zeros(2)})),
            "unexpected: down_modules.0.0.local.weight",
        ),
        (
            changed(
                lambda w: w.update(
                    {"noise_pred_net.mid_modules.0.cond_encoder.1.weight": torch.zeros(16, 14)}
                )
            ),
            "of another shape: mid_modules.0.cond_encoder.1.weight [16, 14] (expected [32, 14])",
        ),
        (
            changed(lambda w: [w.pop(name) for name in list(w) if "up_modules" in name]),
            (
                "missing: up_modules.0.0.blocks.0.block.0.weight, up_modules.0.0.blocks.0.block.0.bias, "
                "up_modules.0.0.blocks.0.block.1.weight, up_modules.0.0.blocks.0.block.1.bias and 20 more"
            ),
        ),
        (
            changed(lambda w: w.pop("noise_pred_net.down_modules.0.0.cond_encoder.1.weight")),
            "missing down_modules.0.0.cond_encoder.1.weight",
        ),
        (
            changed(lambda w: w.update({"noise_pred_net.diffusion_step_encoder.1.weight": torch.zeros(8)})),
            "diffusion_step_encoder.1.weight has shape [8], expected 2 nonzero dimensions",
        ),
        (
            changed(lambda w: w.update({"visual_encoder.cnn.0.weight": torch.zeros(2)})),
            (
                "has tensors beside the U-Net 'noise_pred_net': visual_encoder.cnn.0.weight; policies with"
                " image encoders"
            ),
        ),
        (
            {"actor_mean.0.weight": torch.zeros(2, 2)},
            "contains no conditional U-Net: no tensor is named …diffusion_step_encoder.1",
        ),
        ([1, 2], "cannot be read as a dict of state dicts (ValueError: it contains a list, not a dict)"),
    ],
)
def test_read_public_unet__names_unexpected_tensors(payload: Any, message: str, tmp_path: Path) -> None:
    path = unet_case.write(tmp_path / "x.pt", payload)
    with pytest.raises(CheckpointError) as caught:
        convert(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_public_unet__needs_a_choice_between_several_networks(tmp_path: Path) -> None:
    two = {"first": unet_case.tensors(0), "second": unet_case.tensors(1)}
    path = unet_case.write(tmp_path / "x.pt", two)
    with pytest.raises(
        ConfigError, match="contains several networks: choose one of first, second with --weights"
    ):
        convert(path)
    with pytest.raises(UnknownNameError, match=r"unknown network of .*x\.pt 'secnd'; did you mean 'second'"):
        convert(path, weights="secnd")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_obs_steps": 4},
            (
                "has 6 inputs besides the time, which cannot be 4 observations of equal size: choose the"
                " --num-obs-steps"
            ),
        ),
        (
            {"num_action_steps": 16},
            (
                "num_action_steps must be at most 15, the number of actions from the current step on with"
                " prediction_horizon 16"
            ),
        ),
        (
            {"prediction_horizon": 15},
            "chunk_size, with num_past_actions, must be a multiple of 2 with 2 levels of channels, not 15",
        ),
        ({"sampling_steps": 101}, "sampling_steps must be at most diffusion_steps \\(100\\), not 101"),
        ({"diffusion_steps": 0}, "diffusion_steps must be from 1 to 16384, not 0"),
    ],
)
def test_convert_cfg__names_a_setting_that_does_not_fit(
    values: dict[str, Any], message: str, checkpoint: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(checkpoint, **values)


# --- the command --------------------------------------------------------------------------------------------


def test_convert__writes_a_model_that_runs_as_a_base_policy(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["convert", str(checkpoint), "--out", str(out), "--trust-checkpoint", "--control-mode", "joint"])
        == 0
    )
    output = capsys.readouterr().out
    assert f"residual-rl eval TASK --control-mode joint --base-policy il --il-checkpoint {out}" in output
    assert "Inputs: the last 2 of state [3]" in output
    env = fakes.PointEnv(fakes.PointCfg(), 3)
    observed: Any = env.single_observation_space
    observed.spaces["state"] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    policy = make_base_policy("il", ILCfg(str(out)), env)
    assert (policy.policy.chunk_size, policy.policy.num_action_steps, policy.policy.num_obs_steps) == (
        15,
        8,
        2,
    )


def test_il_policy__converted_model_does_not_depend_on_the_batch(checkpoint: Path) -> None:
    policy, obs = ILPolicy(ILCfg(), convert(checkpoint), CPU), torch.randn(12, 2, 3)
    together = policy.predict_action_chunk({"state": obs}, torch.arange(12))
    assert isinstance(together, Tensor)
    assert together.shape == (12, 15, 2)
    for size in (1, 3, 4):
        parts = [
            policy.predict_action_chunk({"state": part}, torch.arange(len(part))) for part in obs.split(size)
        ]
        assert torch.equal(torch.cat([part for part in parts if isinstance(part, Tensor)]), together)


def test_convert__reads_a_pickle_only_if_trusted(
    checkpoint: Path, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    out = tmp_path / "out"
    assert "if you trust its source, add --trust-checkpoint" in fails(
        "convert", str(checkpoint), "--out", str(out)
    )
    assert not out.exists()
    assert "is not empty; choose another --out" in fails(
        "convert", str(checkpoint), "--out", str(tmp_path), "--trust-checkpoint"
    )
    message = fails("convert", str(tmp_path / "none.pt"), "--out", str(out), "--trust-checkpoint")
    assert "none.pt cannot be read as a dict of state dicts (FileNotFoundError" in message
    assert "convert needs a checkpoint: put it first" in fails("convert", "--out", str(out))

"""Imitation models as files, and the base policy `il` that runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import il_case
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.il import ILCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.imitation.model import LAST_FILE, MODEL_FILE, ImitationModel
from residual_rl.imitation.policy import ILPolicy
from residual_rl.imitation.policy import make as make_il
from residual_rl.runs import checkpoint
from residual_rl.types import ActionChunk, Obs
from residual_rl.utils.seeding import noise_of

CPU = torch.device("cpu")
ALGOS = ("bc", "flow", "diffusion")


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", 2, num_threads=1)


def windows(count: int, seed: int = 0) -> Obs:
    return {"state": torch.randn(count, 2, 25, generator=torch.Generator().manual_seed(seed))}


def predict(policy: ILPolicy, obs: Obs) -> Tensor:
    chunks = policy.predict_action_chunk(obs, torch.arange(len(obs["state"])))
    assert isinstance(chunks, Tensor)
    return chunks


# --- the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGOS)
def test_imitation_model_load__restores_the_saved_model(algo: str, tmp_path: Path) -> None:
    model = il_case.model(algo)
    model.save(tmp_path / MODEL_FILE)
    for path in (tmp_path, tmp_path / MODEL_FILE):
        loaded = ImitationModel.load(path)
        assert loaded.settings == model.settings
        assert loaded.step == 7
        obs, noise = torch.randn(3, 2, 25), torch.randn(3, 8, 6)
        assert torch.equal(loaded.sample(obs, noise), model.sample(obs, noise))
    again = tmp_path / "again.safetensors"
    ImitationModel.load(tmp_path).save(again)
    assert again.read_bytes() == (tmp_path / MODEL_FILE).read_bytes()


def test_imitation_model_sample__normalises_the_window_and_restores_the_actions() -> None:
    """The window is normalised, and the chunk is scaled back to the range of the demonstrated actions."""
    model = il_case.model()
    seen: dict[str, Tensor] = {}

    def sample(network: Any, obs: Tensor, noise: Tensor, sampling_steps: int) -> Tensor:
        seen["obs"] = obs
        return torch.tensor([-1.0, 1.0, 0.0, 5.0, 0.5, -0.5]).expand(1, 8, 6)

    model.algorithm.sample = sample  # type: ignore[method-assign]
    chunk = model.sample(torch.full((1, 2, 25), 0.6), torch.zeros(1, 8, 6))
    torch.testing.assert_close(seen["obs"], torch.full((1, 50), 2.0))
    torch.testing.assert_close(chunk[0, 0], torch.tensor([-0.8, 0.9, 0.05, 0.9, 0.475, -0.375]))


def test_imitation_model_load__refuses_a_file_without_statistics(tmp_path: Path) -> None:
    il_case.model().save(tmp_path / MODEL_FILE)
    state = checkpoint.load(tmp_path / MODEL_FILE, "model")
    del state["statistics"]
    checkpoint.save(tmp_path / MODEL_FILE, state, "model")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has no normalisation statistics"):
        ImitationModel.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-100]),
            "truncated or not a safetensors file; expected a residual_rl model",
        ),
        (
            lambda path: save_file({"w": torch.zeros(2)}, path),
            "of another program; expected a residual_rl model",
        ),
        (lambda path: checkpoint.save(path, {}, "policy"), "is a residual_rl policy; expected a model"),
        (
            lambda path: path.unlink(),
            "has no model.safetensors; it is not an output of `residual-rl imitate`",
        ),
        (
            lambda path: path.rename(path.with_name(LAST_FILE)),
            "has no model.safetensors; it has last.safetensors: choose one",
        ),
        (
            lambda path: checkpoint.save(path, {"model_version": 3}, "model"),
            "is an imitation model of version 3; this release supports version 1",
        ),
        (
            lambda path: checkpoint.save(path, {"model_version": 1}, "model"),
            "has settings that this release cannot read: KeyError: 'settings'",
        ),
    ],
)
def test_imitation_model_load__names_a_damaged_or_foreign_file(
    damage: Any, message: str, tmp_path: Path
) -> None:
    il_case.model().save(tmp_path / MODEL_FILE)
    damage(tmp_path / MODEL_FILE)
    with pytest.raises(CheckpointError) as caught:
        ImitationModel.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_imitation_model_load__names_weights_of_another_shape(tmp_path: Path) -> None:
    il_case.model().save(tmp_path / MODEL_FILE)
    state = checkpoint.load(tmp_path / MODEL_FILE, "model")
    state["settings"]["network"]["time_dim"] = 16
    checkpoint.save(tmp_path / MODEL_FILE, state, "model")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: .* has shape \[16, 8\], the settings make it \[32, 16\]"
    ):
        ImitationModel.load(tmp_path)


# --- checks against the env ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"obs_shapes": {"state": (31,)}, "task_id": "tray"},
            "was trained on 'state' (31,), but this env has (25,); it was trained for task 'tray'",
        ),
        (
            {"obs_keys": ("tray",), "obs_shapes": {"tray": (2,)}},
            "was trained on 'tray' (2,), which this env does not have (ee_position",
        ),
        (
            {"action_dim": 7, "action_unit": None},
            "has actions of size 7, but this env has 6; it was trained for task 'so101-paper'",
        ),
        (
            {"action_unit": (1.5,) * 5 + (0.9,)},
            (
                "an action unit of (1.5, 1.5, 1.5, 1.5, 1.5, 0.9) rad, but in this env it is 0.02 rad: the"
                " control mode"
            ),
        ),
        ({"action_unit_name": "m"}, "an action unit of 0.02 m, but in this env it is 0.02 rad"),
    ],
)
def test_check_fit__refuses_a_model_of_another_robot_or_task(
    values: dict[str, Any], message: str, tmp_path: Path, env: VecEnv
) -> None:
    il_case.model(**values).save(tmp_path / MODEL_FILE)
    with pytest.raises(ConfigError) as caught:
        make_base_policy("il", ILCfg(str(tmp_path)), env)
    assert message in str(caught.value)
    assert str(tmp_path / MODEL_FILE) in str(caught.value)


def test_check_fit__refuses_a_joint_delta_model_in_a_joint_target_env(tmp_path: Path) -> None:
    il_case.model().save(tmp_path / MODEL_FILE)
    targets = make_vec_env("so101-paper", 1, num_threads=1, control_mode="joint_target")
    with pytest.raises(
        ConfigError, match=r"an action unit of 0\.02 rad, but in this env it is .* rad: the control mode"
    ):
        make_base_policy("il", ILCfg(str(tmp_path)), targets)


def test_check_fit__accepts_a_model_without_an_action_unit(tmp_path: Path, env: VecEnv) -> None:
    il_case.model(action_unit=None, action_unit_name=None).save(tmp_path / MODEL_FILE)
    assert make_il(ILCfg(str(tmp_path)), env).num_action_steps == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "base policy 'il': no checkpoint given: set --il-checkpoint FOLDER"),
        ({"num_action_steps": 0}, "num_action_steps must be from 1 to 16384, not 0"),
        ({"num_samples": 0}, "num_samples must be from 1 to 16384, not 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_il_cfg__names_an_invalid_setting(values: dict[str, Any], message: str, env: VecEnv) -> None:
    with pytest.raises(ConfigError, match=message):
        make_base_policy("il", ILCfg(**values), env)


def test_il_cfg__refuses_more_actions_than_a_chunk_has(tmp_path: Path, env: VecEnv) -> None:
    cfg = il_case.make_case(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"num_action_steps must be at most 8, the chunk size of .*model\.safetensors, not 9",
    ):
        make_base_policy("il", ILCfg(cfg.checkpoint, num_action_steps=9), env)


# --- the base policy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGOS)
def test_il_policy__chunk_does_not_depend_on_the_batch(algo: str) -> None:
    policy, obs = ILPolicy(ILCfg(), il_case.model(algo), CPU), windows(64)
    together = predict(policy, obs)
    for size in (1, 3, 4, 32):
        apart = torch.cat([predict(policy, {"state": part}) for part in obs["state"].split(size)])
        assert torch.equal(apart, together)


@pytest.mark.parametrize("algo", ALGOS)
def test_il_policy__samples_the_model_with_noise_of_the_window(algo: str) -> None:
    obs = windows(5)
    policy = ILPolicy(ILCfg(seed=9), il_case.model(algo), CPU)
    noise = noise_of(obs["state"], 9, (8, 6))
    expected = il_case.model(algo).to(CPU, torch.float64).sample(obs["state"].double(), noise)
    assert torch.equal(predict(policy, obs), expected.float())
    single = il_case.model(algo).sample(obs["state"], noise.float())
    torch.testing.assert_close(predict(policy, obs), single, atol=1e-4, rtol=1e-3)
    other = predict(ILPolicy(ILCfg(seed=10), il_case.model(algo), CPU), obs)
    assert torch.equal(other, predict(policy, obs)) == (algo == "bc")


def test_il_policy__sampling_steps_can_be_overridden() -> None:
    obs = windows(4)
    chunks = [
        predict(ILPolicy(ILCfg(sampling_steps=steps), il_case.model("flow"), CPU), obs)
        for steps in (None, 2, 4)
    ]
    assert torch.equal(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])


def test_il_policy__uncertainty_is_the_spread_of_samples() -> None:
    obs = windows(3)
    one, several = (ILPolicy(ILCfg(num_samples=n), il_case.model("flow"), CPU) for n in (1, 4))
    made = several.predict_action_chunk(obs, torch.arange(3))
    assert isinstance(made, ActionChunk)
    assert torch.equal(made.actions, predict(one, obs))  # the first sample is executed
    model = il_case.model("flow").to(CPU, torch.float64)
    samples = [model.sample(obs["state"].double(), noise_of(obs["state"], i << 32, (8, 6))) for i in range(4)]
    expected = torch.stack(samples).std(0, correction=0).mean(-1)
    assert made.uncertainty is not None
    torch.testing.assert_close(made.uncertainty, expected.float())
    assert (made.uncertainty > 0).all()


def test_il_policy__deterministic_policy_has_no_uncertainty() -> None:
    assert isinstance(
        ILPolicy(ILCfg(num_samples=4), il_case.model("bc"), CPU).predict_action_chunk(
            windows(3), torch.arange(3)
        ),
        Tensor,
    )


def test_il_policy__single_observation_has_no_window_dimension(env: VecEnv, tmp_path: Path) -> None:
    il_case.model("bc", num_obs_steps=1, chunk_size=1, num_action_steps=1).save(tmp_path / MODEL_FILE)
    policy = make_base_policy("il", ILCfg(str(tmp_path)), env)
    obs, _ = env.reset(seed=1)
    model = ImitationModel.load(tmp_path).to(CPU, torch.float64)
    expected = model.sample(obs["state"].double()[:, None], torch.zeros(2, 1, 6, dtype=torch.float64))
    assert torch.equal(policy.act(obs), expected[:, 0].float().clamp(-1, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"obs_keys": [1]}, r"obs_keys must be text each, not \(1,\)"),
        ({"sampling_steps": 1e30}, "sampling_steps must be a whole number, not 1e"),
        ({"sampling_steps": 10**6}, "sampling_steps must be from 1 to 16384, not 10"),
        ({"action_dim": -1}, "action_dim must be from 1 to 8192, not -1"),
        ({"action_unit": [0.02]}, "action_unit must have 6 numbers, not 1"),
        ({"obs_shapes": {"state": [10**12]}}, "the shape of state must be whole numbers from 1 to 65536"),
        ({"network": {**il_case.TINY_UNET, "time_dim": 10**9}}, "time_dim must be whole numbers from 1 to"),
        ({"network": {**il_case.TINY_UNET, "channels": [8, 65536]}}, r"model\.safetensors: .* has shape"),
        ({"network": [1]}, r"network must be an object, not \[1\]"),
    ],
)
def test_model_settings__are_checked_before_memory_is_allocated(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A sender can store any settings with a correct checksum."""
    il_case.model().save(tmp_path / MODEL_FILE)
    state = checkpoint.load(tmp_path / MODEL_FILE, "model")
    state["settings"] |= values
    checkpoint.save(tmp_path / MODEL_FILE, state, "model")
    with pytest.raises(CheckpointError, match=message):
        ImitationModel.load(tmp_path)


def test_imitation_model_save__header_contains_kind_and_settings(tmp_path: Path) -> None:
    """The header is readable without this package."""
    il_case.model().save(tmp_path / MODEL_FILE)
    data = (tmp_path / MODEL_FILE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["residual_rl"])
    assert document["kind"] == "model"
    assert document["state"]["settings"]["task_id"] == "so101-paper"
    assert "statistics/obs_mean" in header

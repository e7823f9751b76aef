"""The base policy `lerobot`: its observations and actions by hand, and the checkpoints that it refuses."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_case import make_case, make_checkpoint
from safetensors.torch import load_file, save_file

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.cli.main import main
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError, NonFiniteError
from residual_rl.factory import make_vec_env
from residual_rl.lerobot.policy import LeRobotPolicy
from residual_rl.types import Obs

pytestmark = pytest.mark.lerobot

ANGLES = [math.pi / 4, -math.pi / 6, 0.0, math.pi / 2, -math.pi / 3, 1.74533]
DEGREES = [45.0, -30.0, 0.0, 90.0, -60.0, 100.0]
"""The same in the arm's units: degrees, and the fully open gripper in per cent."""


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", 3, num_threads=1)


@pytest.fixture(scope="module")
def target_env() -> VecEnv:
    return make_vec_env("so101-paper", 3, num_threads=1, control_mode="joint_target")


def policy_of(cfg: LeRobotCfg, env: VecEnv) -> LeRobotPolicy:
    policy = make_base_policy("lerobot", cfg, env).policy
    assert isinstance(policy, LeRobotPolicy)
    return policy


def observed(env: VecEnv, count: int = 3) -> Obs:
    obs, _ = env.reset(seed=4)
    return {name: value[:count] for name, value in obs.items()}


def make_act_predict(policy: LeRobotPolicy, normalized: list[float]) -> None:
    """Make an ACT policy predict these six normalised numbers at every step."""
    head = policy._model.policy.model.action_head
    torch.nn.init.zeros_(head.weight)
    head.bias.data.copy_(torch.tensor(normalized))


# --- observations and actions -------------------------------------------------------------------------------


def test_lerobot_policy__receives_normalised_hardware_units(
    env: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Degrees and per cent, normalised with the checkpoint's mean 10 and standard deviation 20; the state
    with 0.1 and 0.5."""
    policy = policy_of(make_case(tmp_path), env)
    given: list[dict[str, Any]] = []

    def predict(batch: dict[str, Any]) -> torch.Tensor:
        given.append(batch)
        return torch.zeros(4, 8, 6, dtype=torch.float64)

    monkeypatch.setattr(policy._predictor._policy, "predict_action_chunk", predict)  # type: ignore[attr-defined]
    obs = observed(env)
    obs["joint_position"] = torch.tensor([ANGLES] * 3)
    obs["state"] = torch.full((3, 25), 0.6)
    policy.predict_action_chunk(obs, torch.arange(3))
    (batch,) = given
    np.testing.assert_allclose(
        batch["observation.state"][:3], [[(d - 10.0) / 20.0 for d in DEGREES]] * 3, atol=1e-5
    )
    np.testing.assert_allclose(batch["observation.environment_state"][:3], np.ones((3, 25)), atol=1e-6)
    assert batch["observation.state"].dtype == torch.float64
    assert len(batch["observation.state"]) == 4  # filled up to a multiple of four


def test_lerobot_policy__predictions_are_absolute_joint_positions(target_env: VecEnv, tmp_path: Path) -> None:
    """ACT predicts 1.75 everywhere: 10 + 20 · 1.75 = 45 degrees, and 45 % of the gripper's range from
    -0.174533 to 1.74533 rad."""
    policy = policy_of(make_case(tmp_path), target_env)
    make_act_predict(policy, [1.75] * 6)
    action = policy.predict_action_chunk(observed(target_env), torch.arange(3))
    assert action.shape == (3, 8, 6)
    low = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533])
    high = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533])
    target = np.array([math.pi / 4] * 5 + [-0.174533 + 0.45 * (1.74533 + 0.174533)])
    np.testing.assert_allclose(action[0, 0], 2 * (target - low) / (high - low) - 1, atol=1e-5)


def test_lerobot_policy__converts_positions_to_steps_in_joint_delta(env: VecEnv, tmp_path: Path) -> None:
    """The change from the current targets to 45 degrees is divided into steps of 0.02 rad."""
    policy = policy_of(make_case(tmp_path), env)
    make_act_predict(policy, [1.75] * 6)
    obs = observed(env)
    obs["joint_target"] = torch.full((3, 6), math.pi / 4 - 0.05)
    obs["joint_target"][:, 5] = -0.174533 + 0.45 * (1.74533 + 0.174533)
    action = policy.predict_action_chunk(obs, torch.arange(3))
    np.testing.assert_allclose(action[1, :4, 0], [1.0, 1.0, 0.5, 0.0], atol=1e-4)
    np.testing.assert_allclose(action[1, :4, 5], np.zeros(4), atol=1e-4)


@pytest.mark.parametrize(("units", "angle"), [("rad", 1.5), ("range", 0.015 * 1.91986)])
def test_units__converts_predictions_in_rad_and_range(
    units: Any, angle: float, target_env: VecEnv, tmp_path: Path
) -> None:
    """A policy in radians, and one in per cent of each joint's range."""
    cfg = dataclasses.replace(make_case(tmp_path), units=units)
    policy = policy_of(cfg, target_env)
    make_act_predict(policy, [(1.5 - 10.0) / 20.0] * 6)
    action = policy.predict_action_chunk(observed(target_env), torch.arange(3))
    np.testing.assert_allclose(action[0, 0, 0], angle / 1.91986, atol=1e-5)


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_lerobot_policy__chunk_does_not_depend_on_the_batch(kind: str, tmp_path: Path) -> None:
    """37 envs together and in parts. Most actions are not clipped, which would hide differences."""
    many = make_vec_env("so101-paper", 37, num_threads=1, control_mode="joint_target")
    policy = policy_of(make_case(tmp_path, kind), many)
    obs, _ = many.reset(seed=11)
    window = (
        {k: v[:, None].expand(-1, 2, *v.shape[1:]) for k, v in obs.items()}
        if policy.num_obs_steps == 2
        else obs
    )
    together = policy.predict_action_chunk(window, torch.arange(37))
    assert (together.abs() < 1.0).float().mean() > 0.9
    for size in (1, 2, 3, 5, 8, 16, 31, 36):
        assert torch.equal(
            policy.predict_action_chunk({k: v[:size] for k, v in window.items()}, torch.arange(size)),
            together[:size],
        )


def test_lerobot_policy__diffusion_receives_its_observation_history(
    env: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two observations: the first one twice at the start of an episode, then the last two."""
    executor = make_base_policy("lerobot", make_case(tmp_path, "diffusion"), env)
    policy = executor.policy
    assert isinstance(policy, LeRobotPolicy)
    seen: list[torch.Tensor] = []
    generate = policy._predictor._diffusion.generate_actions  # type: ignore[attr-defined]

    def record(batch: dict[str, torch.Tensor], noise: torch.Tensor) -> Any:
        seen.append(batch["observation.state"][:3, :, 0] * 20.0 + 10.0)  # degrees of the first joint
        return generate(batch, noise=noise)

    monkeypatch.setattr(policy._predictor._diffusion, "generate_actions", record)  # type: ignore[attr-defined]
    obs = observed(env)
    # Three actions of a chunk are executed, so the policy is queried at steps 0 and 3.
    for step in range(4):
        obs["joint_position"] = torch.deg2rad(torch.full((3, 6), 5.0 * step))
        executor.act(obs)
    np.testing.assert_allclose(seen[0], [[0.0, 0.0]] * 3, atol=1e-4)
    np.testing.assert_allclose(seen[1], [[10.0, 15.0]] * 3, atol=1e-4)


def test_lerobot_policy__diffusion_noise_is_independent_of_torchs_generator(
    env: VecEnv, tmp_path: Path
) -> None:
    """The noise, including that of DDPM's steps, depends on the observations and the seed. Torch's global
    generator is neither used nor advanced."""
    cfg = make_case(tmp_path, "diffusion", num_train_timesteps=6)
    policy, other = policy_of(cfg, env), policy_of(dataclasses.replace(cfg, seed=1), env)
    window = {k: v[:, None].expand(-1, 2, *v.shape[1:]) for k, v in observed(env).items()}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = policy._chunk(window)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(policy._chunk(window), first)
    assert (other._chunk(window) - first).abs().max() > 1.0


def test_lerobot_policy__diffusion_matches_ddim_worked_out_by_hand(env: VecEnv, tmp_path: Path) -> None:
    """The denoising by hand, with DDIM, which adds no noise."""
    from residual_rl.utils.seeding import noise_of

    policy = policy_of(make_case(tmp_path, "diffusion", noise_scheduler_type="DDIM"), env)
    obs = observed(env)
    window = {k: obs[k][:, None].expand(-1, 2, -1) for k in ("joint_position", "state")}
    diffusion = policy._predictor._diffusion  # type: ignore[attr-defined]
    x = noise_of(window, 0, (8 * 6 + 1,))[:, :-1].unflatten(1, (8, 6))
    degrees = env.hardware.to_hardware(window["joint_position"])  # type: ignore[union-attr]
    condition = torch.cat([(degrees - 10.0) / 20.0, (window["state"].double() - 0.1) / 0.5], -1).flatten(1)
    alphas = diffusion.noise_scheduler.alphas_cumprod.double()
    for t in (3, 2, 1, 0):
        predicted = diffusion.unet(x, torch.full((3,), t), global_cond=condition)
        clean = ((x - (1 - alphas[t]).sqrt() * predicted) / alphas[t].sqrt()).clamp(-1.0, 1.0)
        # The scheduler's last step ends at the clean sample.
        before = alphas[t - 1] if t else torch.tensor(1.0)
        x = before.sqrt() * clean + (1 - before).sqrt() * predicted
    np.testing.assert_allclose(policy._chunk({**window}), 10.0 + 20.0 * x[:, 1:4].detach(), atol=1e-5)


@pytest.mark.parametrize(("kind", "values"), [("act", {}), ("diffusion", {"noise_scheduler_type": "DDIM"})])
def test_precision__native_is_close_to_float64(
    kind: str, values: dict[str, Any], env: VecEnv, tmp_path: Path
) -> None:
    """Equal up to the rounding of float32. DDPM is left out, since it draws other random numbers in
    float32."""
    cfg = make_case(tmp_path, kind, **values)
    exact, quick = policy_of(cfg, env), policy_of(dataclasses.replace(cfg, precision="native"), env)
    assert next(quick._model.policy.parameters()).dtype == torch.float32
    obs = observed(env)
    window = (
        {k: v[:, None].expand(-1, 2, *v.shape[1:]) for k, v in obs.items()}
        if exact.num_obs_steps == 2
        else obs
    )
    np.testing.assert_allclose(quick._chunk(window), exact._chunk(window), atol=1e-2)  # degrees


def test_lerobot_policy__refuses_nonfinite_predictions(env: VecEnv, tmp_path: Path) -> None:
    executor = make_base_policy("lerobot", make_case(tmp_path), env)
    make_act_predict(executor.policy, [0.0, math.nan, 0.0, 0.0, 0.0, 0.0])  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="the base action of base policy 'lerobot' is not finite"):
        executor.act(observed(env))


def test_inference_steps__sets_the_number_of_denoising_steps(env: VecEnv, tmp_path: Path) -> None:
    cfg = make_case(tmp_path, "diffusion")
    assert (
        policy_of(dataclasses.replace(cfg, inference_steps=2), env)._predictor._diffusion.num_inference_steps
        == 2
    )  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"inference_steps is 5, but .* was trained with 4"):
        policy_of(dataclasses.replace(cfg, inference_steps=5), env)
    with pytest.raises(ConfigError, match="inference_steps must be at least 2, not 1"):
        policy_of(dataclasses.replace(cfg, inference_steps=1), env)


def test_num_action_steps__is_at_most_the_chunk_size(env: VecEnv, tmp_path: Path) -> None:
    act, diffusion = make_case(tmp_path / "act"), make_case(tmp_path / "diffusion", "diffusion")
    trained, fewer, all_of_it = (
        policy_of(dataclasses.replace(act, num_action_steps=n), env) for n in (None, 2, 8)
    )
    assert [(p.chunk_size, p.num_action_steps) for p in (trained, fewer, all_of_it)] == [
        (8, 4),
        (8, 2),
        (8, 8),
    ]
    with pytest.raises(ConfigError, match=r"num_action_steps is 9, but .* predicts 8"):
        policy_of(dataclasses.replace(act, num_action_steps=9), env)
    assert policy_of(dataclasses.replace(diffusion, num_action_steps=7), env).chunk_size == 7
    # Of the horizon of 8, one action is in the past.
    with pytest.raises(ConfigError, match="num_action_steps must be at most 7"):
        policy_of(dataclasses.replace(diffusion, num_action_steps=8), env)


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_lerobot_policy__converts_and_checks_images(
    kind: str, tmp_path: Path, opengl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images have channels first, from 0 to 1. A camera has another name in the policy."""
    env = make_vec_env("so101-paper", 2, num_threads=1, obs_mode="rgb", image_size=(32, 48))
    values: dict[str, Any] = {"crop_shape": None} if kind == "diffusion" else {}
    folder = make_checkpoint(tmp_path, kind, images={"front": (32, 48), "wrist": (32, 48)}, **values)
    policy = policy_of(LeRobotCfg(checkpoint=str(folder), cameras=("top=front",)), env)
    assert set(policy.inputs) == {"joint_position", "joint_target", "top", "wrist"}
    obs = observed(env, 2)
    feature = policy._feature("observation.images.front", obs["top"])
    assert feature.shape == (2, 3, 32, 48)
    np.testing.assert_allclose(feature[1, 2, 5, 7], obs["top"][1, 5, 7, 2] / 255.0, atol=1e-7)
    executor = BasePolicyExecutor(policy, env)
    one = executor.act(obs)
    assert one.shape == (2, 6)
    with pytest.raises(
        CheckpointError,
        match=r"needs 'observation.images.front', but this env has the cameras top, wrist; .*--base.cameras",
    ):
        policy_of(LeRobotCfg(checkpoint=str(folder)), env)
    smaller = make_vec_env("so101-paper", 2, num_threads=1, obs_mode="rgb", image_size=(32, 32))
    with pytest.raises(CheckpointError, match=r"of \(3, 32, 48\) .*camera 'top' has \(3, 32, 32\)"):
        policy_of(LeRobotCfg(checkpoint=str(folder), cameras=("top=front",)), smaller)


# --- errors -------------------------------------------------------------------------------------------------


def refusal(cfg: LeRobotCfg, env: VecEnv) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        policy_of(cfg, env)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lerobot_policy__refuses_a_policy_of_another_robot_or_task(env: VecEnv, tmp_path: Path) -> None:
    text = refusal(make_case(tmp_path / "joints", joints=14, actions=14), env)
    assert "predicts actions of 14 numbers; this env's robot has 6 joints (shoulder_pan, " in text
    text = refusal(make_case(tmp_path / "state", state_dim=30), env)
    assert "needs 'observation.environment_state' of (30,); this env's 'state' has (25,)" in text
    text = refusal(make_case(tmp_path / "images", images={"top": (32, 32)}), env)
    assert "needs 'observation.images.top', but this env has no cameras" in text
    blind = make_vec_env("so101-paper", 1, num_threads=1, obs_mode="rgb", obs_cameras=())
    assert "which is the observation 'state'; this env has ee_position, goal" in refusal(
        make_case(tmp_path / "whole"), blind
    )


def test_find_checkpoint__names_a_folder_without_a_policy(env: VecEnv, tmp_path: Path) -> None:
    assert "a trained policy is needed: --il-checkpoint FOLDER" in refusal(LeRobotCfg(), env)
    assert "nothing/at/all does not exist" in refusal(LeRobotCfg(checkpoint="nothing/at/all"), env)
    assert "has no config.json; expected the folder of a LeRobot policy" in refusal(
        LeRobotCfg(checkpoint=str(tmp_path)), env
    )
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(LeRobotCfg(checkpoint=str(tmp_path / "file")), env)
    # A name on the hub, which tests cannot reach.
    text = refusal(LeRobotCfg(checkpoint="nobody/nothing"), env)
    assert "nobody/nothing is not a local folder, and cannot be downloaded from the hub" in text


def test_load_model__names_the_damage_of_a_checkpoint(env: VecEnv, tmp_path: Path) -> None:
    def damaged(name: str) -> tuple[Path, LeRobotCfg]:
        return tmp_path / name, make_case(tmp_path / name)

    folder, cfg = damaged("weights")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    assert "cannot be read as a LeRobot policy of type 'act'" in refusal(cfg, env)
    folder, cfg = damaged("layers")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.action_head.bias")
    save_file(weights, folder / "model.safetensors")
    assert "action_head.bias" in refusal(cfg, env)
    folder, cfg = damaged("pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no model.safetensors, only pytorch_model.bin, which cannot be read safely" in refusal(
        cfg, env
    )
    folder, cfg = damaged("old")
    (folder / "policy_preprocessor.json").unlink()
    assert (
        "has no policy_preprocessor.json: it is not a LeRobot policy, or from a release before 0.4"
        in refusal(cfg, env)
    )
    folder, cfg = damaged("json")
    (folder / "policy_preprocessor.json").write_text("{")
    assert "policy_preprocessor.json cannot be read" in refusal(cfg, env)
    folder, cfg = damaged("type")
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "type": "magic"})
    )
    cfg = dataclasses.replace(cfg, trust_checkpoint=True)
    assert "cannot be read as a LeRobot policy of type 'magic'" in refusal(cfg, env)
    folder, cfg = damaged("state")
    next(folder.glob("policy_preprocessor_step_*")).unlink()
    assert "the state of a step of policy_preprocessor.json" in refusal(cfg, env)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim_model": 10**6}, "dim_model is 1000000, expected at most 16384"),
        ({"n_encoder_layers": 10**4}, "n_encoder_layers is 10000, expected at most"),
        ({"chunk_size": 10**30}, "chunk_size is 1000"),
    ],
)
def test_load_model__sizes_are_checked_before_memory_is_allocated(
    values: dict[str, Any], message: str, env: VecEnv, tmp_path: Path
) -> None:
    cfg = make_case(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    assert message in refusal(cfg, env)


def test_check_statistics__refuses_missing_statistics(env: VecEnv, tmp_path: Path) -> None:
    """LeRobot itself would pass features without statistics on unchanged."""
    cfg = make_case(tmp_path)
    (file,) = tmp_path.glob("policy_postprocessor_step_*.safetensors")
    stored = load_file(file)
    save_file({name: value for name, value in stored.items() if not name.startswith("action.")}, file)
    assert "has no normalisation statistics of 'action'" in refusal(cfg, env)
    save_file(
        {name: value.new_zeros(3) if name == "action.mean" else value for name, value in stored.items()}, file
    )
    assert "the mean of 'action' has size 3, but the policy's feature has size 6" in refusal(cfg, env)


def test_trust_checkpoint__is_needed_for_a_processor_that_imports_a_class(
    env: VecEnv, tmp_path: Path
) -> None:
    cfg = make_case(tmp_path)
    file = tmp_path / "policy_preprocessor.json"
    processor = json.loads(file.read_text())
    processor["steps"].insert(0, {"class": "pathlib.Path", "config": {}})
    file.write_text(json.dumps(processor))
    text = refusal(cfg, env)
    assert "importing 'pathlib.Path'" in text
    assert "--trust-checkpoint" in text
    # With trust, the class is imported, but it is not a processor step.
    trusted = refusal(dataclasses.replace(cfg, trust_checkpoint=True), env)
    assert "importing" not in trusted


def test_lerobot_policy__refuses_temporal_ensembling(env: VecEnv, tmp_path: Path) -> None:
    cfg = make_case(tmp_path / "ensemble", temporal_ensemble_coeff=0.01, n_action_steps=1)
    assert "temporal_ensemble_coeff" in refusal(cfg, env)
    assert policy_of(dataclasses.replace(cfg, num_action_steps=2), env).num_action_steps == 2
    text = refusal(dataclasses.replace(make_case(tmp_path / "act"), inference_steps=3), env)
    assert "inference_steps is for Diffusion policies" in text


@pytest.mark.parametrize("version", ["0.3.3", "0.4.3", "0.7.0", "1.0"])
def test_require_lerobot__refuses_unsupported_releases(
    version: str, env: VecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_case(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    text = refusal(cfg, env)
    assert (
        f"LeRobot {version} is installed, but the base policy 'lerobot' needs a release from 0.4.4 to below"
        in text
    )


def test_lerobot_cfg__names_an_invalid_setting() -> None:
    with pytest.raises(ConfigError, match="units must be one of hardware, range, rad, not 'turns'"):
        LeRobotCfg(units="turns")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_action_steps must be from 1 to 16384, not 0"):
        LeRobotCfg(num_action_steps=0)
    with pytest.raises(ConfigError, match="cameras"):
        LeRobotCfg(cameras=("=front",))


def test_eval__runs_a_lerobot_policy(tmp_path: Path) -> None:
    make_case(tmp_path / "policy" / "checkpoints" / "last" / "pretrained_model")
    arguments = [
        "--base-policy",
        "lerobot",
        "--il-checkpoint",
        str(tmp_path / "policy"),
        "--n-episodes",
        "2",
        "--max-episode-steps",
        "5",
    ]
    assert main(["eval", "so101-paper", *arguments, "--output", str(tmp_path / "eval.json")]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["policies"]

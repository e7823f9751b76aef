"""The base policy `model`: runs, Stable-Baselines3 zips, exported programs, and consent for files that can
run code."""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import fakes
import gymnasium
import numpy as np
import pytest
import tiny_runs
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from torch import Tensor, nn

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.config import TrainCfg
from residual_rl.errors import CheckpointError, ConfigError, MissingDependencyError
from residual_rl.evaluation.evaluate import Episodes, evaluate, no_residual
from residual_rl.exported_policy import load_policy
from residual_rl.factory import make_residual_env
from residual_rl.runs import checkpoint
from residual_rl.types import Obs, Transition
from residual_rl.utils import trusted
from residual_rl.utils.signature import SIGNATURE_FILE

SEEDS = [3, 11, 4, 60, 7]
EVERYONE = torch.arange(3)


def point_env(num_envs: int = 3) -> fakes.PointEnv:
    return fakes.PointEnv(fakes.PointCfg(), num_envs)


def point_obs() -> Obs:
    return point_env().reset(seed=40)[0]


def policy_of(path: Path, env: fakes.PointEnv | None = None, **settings: Any) -> Any:
    return make_base_policy("model", ModelCfg(str(path), True, **settings), env or point_env()).policy


# --- runs ---------------------------------------------------------------------------------------------------


def episodes_of(
    cfg: TrainCfg, num_envs: int, model: Path | None = None
) -> tuple[Episodes, dict[int, list[list[float]]]]:
    """Metrics and executed actions by seed, of the residual in `model` or of the base policy alone."""
    env = make_residual_env(cfg, num_envs)
    actions: dict[int, list[list[float]]] = {seed: [] for seed in SEEDS}
    running = dict(enumerate(SEEDS[:num_envs]))
    waiting = SEEDS[num_envs:]

    def note(transition: Transition, info: dict[str, Any]) -> None:
        for env_id, seed in sorted(running.items()):  # ascending, the order in which ended envs draw seeds
            actions[seed].append(transition.action[env_id].tolist())
            if info["_final_info"][env_id]:
                del running[env_id]
                if waiting:
                    running[env_id] = waiting.pop(0)

    policy = no_residual(env)
    if model is not None:
        exported = load_policy(model / "policy.safetensors")
        env.residual_scale = exported.residual_scale
        policy = exported.actor(env.observation_space, env.action_dim, env.device)
    episodes = evaluate(env, policy, SEEDS, on_step=note)
    env.close()
    return episodes, actions


@pytest.mark.slow
def test_trained_run__equals_the_run_bit_for_bit(run: Path) -> None:
    """The same is true of a run that was trained on that run."""
    first = load_policy(run / "final_model" / "policy.safetensors").cfg
    expected, actions = episodes_of(first, 3, run / "final_model")
    assert expected["residual_magnitude"].min() > 0.0
    on_top = dataclasses.replace(
        tiny_runs.config("model", checkpoint=str(run / "final_model")), task=first.task
    )
    got, same_actions = episodes_of(on_top, 2)
    assert same_actions == actions
    assert not got["residual_magnitude"].any()
    for name in set(expected) - {"residual_magnitude", "return"}:  # without a residual there is no penalty
        assert torch.equal(got[name], expected[name]), name

    tiny_runs.train(
        run / "second",
        base_policy="model",
        checkpoint=str(run / "final_model"),
        total_timesteps=64,
        eval_freq=0,
    )
    expected, actions = episodes_of(on_top, 2, run / "second" / "final_model")
    assert expected["residual_magnitude"].min() > 0.0
    assert actions != same_actions
    third = dataclasses.replace(
        tiny_runs.config("model", checkpoint=str(run / "second" / "final_model")), task=first.task
    )
    assert episodes_of(third, 5)[1] == actions


@pytest.mark.slow
def test_trained_run__applies_the_residual_unit_of_the_env(tmp_path: Path) -> None:
    """With absolute targets, an action spans the range of a joint, and a residual much less."""
    settings: dict[str, Any] = {"control_mode": "joint_target", "total_timesteps": 64, "eval_freq": 0}
    cfg = tiny_runs.train(tmp_path / "run", **settings).cfg
    expected, actions = episodes_of(cfg, 3, tmp_path / "run" / "final_model")
    on_top = dataclasses.replace(
        tiny_runs.config("model", checkpoint=str(tmp_path / "run" / "final_model")), task=cfg.task
    )
    assert expected["residual_magnitude"].min() > 0.0
    assert episodes_of(on_top, 2)[1] == actions


def test_checkpoint__accepts_a_run_a_model_folder_or_a_policy_file(run: Path) -> None:
    env = make_residual_env(tiny_runs.config(), 2).vec_env
    obs, _ = env.reset(seed=0)
    best, folder, file = (
        make_base_policy("model", ModelCfg(str(path)), env).act(obs)
        for path in (run, run / "final_model", run / "final_model" / "policy.safetensors")
    )
    assert torch.equal(folder, file)
    assert not torch.equal(best, folder)
    assert torch.equal(best, make_base_policy("model", ModelCfg(str(run / "best_model")), env).act(obs))


@pytest.mark.slow
def test_trained_run__finds_its_own_base_policy_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"total_timesteps": 32, "eval_freq": 0}
    tiny_runs.train(Path("inner"), **settings)
    tiny_runs.train(Path("runs/outer"), base_policy="model", checkpoint="inner/final_model", **settings)
    monkeypatch.chdir(tmp_path / "elsewhere")
    env = make_residual_env(tiny_runs.config(), 2).vec_env
    make_base_policy("model", ModelCfg(str(tmp_path / "runs/outer/final_model")), env)
    assert str(tmp_path / "inner/final_model") in caplog.text  # the path in use is logged
    (tmp_path / "inner").rename(tmp_path / "gone")
    with pytest.raises(
        ConfigError,
        match=r"runs/outer/final_model/policy.safetensors, trained on .* inner/final_model does not exist",
    ):
        make_base_policy("model", ModelCfg(str(tmp_path / "runs/outer/final_model")), env)


def test_trained_run__run_of_another_task_is_an_error(run: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"policy.safetensors, trained on task 'so101-paper' with base policy 'jacobian', does not fit"
            r" this env"
        ),
    ):
        make_base_policy("model", ModelCfg(str(run)), point_env())


def test_trained_run__residual_of_another_size_is_an_error(run: Path) -> None:
    """The base policy of the run matches the env, but its residual policy does not."""
    state = checkpoint.load(run / "final_model" / "policy.safetensors", "policy")
    state["config"] |= {"base_policy_id": "zero", "base": None}
    checkpoint.save(run / "zero.safetensors", state, "policy")
    with pytest.raises(
        ConfigError,
        match=r"zero.safetensors, trained .*: log_std has shape \[6\], the settings make it \[2\]",
    ):
        make_base_policy("model", ModelCfg(str(run / "zero.safetensors")), point_env())


def test_checkpoint__missing_or_unsupported_file_is_an_error(tmp_path: Path, fails: tiny_runs.Fails) -> None:
    message = fails("train", "so101-paper", "--base-policy", "model", "--output-dir", tmp_path / "x")
    assert "is needed: --base.checkpoint (or --model-path) with a run folder" in message
    (tmp_path / "empty").mkdir()
    assert "empty has no model yet" in fails(
        "train", "so101-paper", "--base-policy", "model", "--model-path", tmp_path / "empty"
    )
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt is not a model" in fails(
        "train", "so101-paper", "--base-policy", "model", "--model-path", tmp_path / "notes.txt"
    )
    assert "gone.zip does not exist" in fails(
        "train", "so101-paper", "--base-policy", "model", "--model-path", tmp_path / "gone.zip"
    )


def test_checkpoint__imitation_model_is_an_error_that_names_the_base_policy_il(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "model.safetensors", {"weights": {}}, "model")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            CheckpointError,
            match=f"base policy 'model': {path} contains an imitation model: use --base-policy il",
        ):
            make_base_policy("model", ModelCfg(str(path)), point_env())


# --- Stable-Baselines3 --------------------------------------------------------------------------------------


class Spaces(gymnasium.Env[Any, Any]):
    """An env that only has spaces, for the construction of models."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (2,), np.float32)


def vector(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def lively(model: Any) -> Any:
    """Increase the weights of the last layer, since untrained policies predict nearly zero."""
    for name, parameter in model.policy.named_parameters():
        if "action_net" in name or "mu" in name:
            parameter.data.normal_(0.0, 2.0)
    return model


def save(model: Any, path: Path) -> Path:
    model.save(path)
    return path


@pytest.mark.parametrize("kind", [PPO, SAC])
def test_sb3_policy__equals_predict_of_stable_baselines3(kind: Any, tmp_path: Path) -> None:
    model = lively(kind("MlpPolicy", Spaces(vector(5)), device="cpu", seed=1))
    policy = policy_of(save(model, tmp_path / "model.zip"))
    obs = point_obs()
    expected, _ = model.predict(obs["state"].numpy(), deterministic=True)
    chunk = policy.predict_action_chunk(obs, EVERYONE)
    assert chunk.shape == (3, 1, 2)
    assert chunk.dtype == torch.float32
    assert not chunk.requires_grad
    np.testing.assert_allclose(chunk[:, 0].clamp(-1.0, 1.0), expected, atol=1e-6)
    assert np.abs(expected).min() > 0.01
    alone = torch.cat(
        [policy.predict_action_chunk({k: v[[w]] for k, v in obs.items()}, EVERYONE[[w]]) for w in range(3)]
    )
    assert torch.equal(alone, chunk)


def test_sb3_policy__joins_vectors_or_reads_them_by_name(tmp_path: Path) -> None:
    """Vectors are joined in the order of `input_keys`, or read by name if it was trained on a dict."""
    obs = point_obs()
    joined = lively(PPO("MlpPolicy", Spaces(vector(7)), device="cpu", seed=1))
    policy = policy_of(save(joined, tmp_path / "joined.zip"), input_keys=("position", "state"))
    both = torch.cat([obs["position"], obs["state"]], 1)
    np.testing.assert_allclose(
        policy.predict_action_chunk(obs, EVERYONE)[:, 0].clamp(-1, 1),
        joined.predict(both.numpy(), deterministic=True)[0],
        atol=1e-6,
    )
    assert policy.inputs == {"position": (2,), "state": (5,)}

    named = lively(
        PPO(
            "MultiInputPolicy",
            Spaces(spaces.Dict({"state": vector(5), "position": vector(2)})),
            device="cpu",
            seed=1,
        )
    )
    policy = policy_of(save(named, tmp_path / "named.zip"))
    expected = named.predict({k: obs[k].numpy() for k in ("state", "position")}, deterministic=True)[0]
    np.testing.assert_allclose(
        policy.predict_action_chunk(obs, EVERYONE)[:, 0].clamp(-1, 1), expected, atol=1e-6
    )
    assert policy.inputs == {"position": (2,), "state": (5,)}


def test_sb3_policy__transposes_images(tmp_path: Path) -> None:
    """Images are [H, W, C] here and channels first in Stable-Baselines3."""
    image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    env = point_env()
    env.single_observation_space.spaces["top"] = image  # type: ignore[attr-defined]
    model = lively(
        PPO(
            "MultiInputPolicy",
            Spaces(spaces.Dict({"state": vector(5), "top": image})),
            device="cpu",
            n_steps=2,
            batch_size=2,
        )
    )
    assert model.observation_space["top"].shape == (3, 36, 40)  # type: ignore[index]
    policy = policy_of(save(model, tmp_path / "model.zip"), env)
    obs = {**point_obs(), "top": torch.randint(0, 256, (3, 36, 40, 3), dtype=torch.uint8)}
    expected = model.predict({k: obs[k].numpy() for k in ("state", "top")}, deterministic=True)[0]
    np.testing.assert_allclose(
        policy.predict_action_chunk(obs, EVERYONE)[:, 0].clamp(-1, 1), expected, atol=1e-5
    )
    env.single_observation_space.spaces["top"] = spaces.Box(0, 255, (20, 40, 3), np.uint8)  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match=r"trained on 'top' of shape \(3, 36, 40\); this env's is \(20, 40, 3\)"
    ):
        policy_of(tmp_path / "model.zip", env)


@pytest.mark.parametrize(
    ("observations", "actions", "settings", "message"),
    [
        (vector(31), None, {}, r"model.zip observes \(31,\); this env gives it \(5,\), state \(5,\)"),
        (
            vector(5),
            None,
            {"input_keys": ("state", "position")},
            r"\(5,\); this env gives it \(7,\), state \(5,\) \+ position \(2,\)",
        ),
        (
            vector(5),
            None,
            {"input_keys": ("goal",)},
            "needs the observation 'goal'; the env has joint_position, position, state",
        ),
        (
            vector(5),
            spaces.Box(-1, 1, (6,)),
            {},
            r"acts in Box\(-1.0, 1.0, \(6,\), .*; this env takes actions Box\(-1.0, 1.0, \(2,\)\)",
        ),
        (
            vector(5),
            spaces.Box(-2, 2, (2,)),
            {},
            r"acts in Box\(-2.0, 2.0, \(2,\), float32\); this env's actions are from -1 to 1",
        ),
        (vector(5), spaces.Discrete(4), {}, r"acts in Discrete\(4\); this env takes actions Box"),
    ],
)
def test_sb3_policy__spaces_that_do_not_match_are_errors(
    observations: Any, actions: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save(A2C("MlpPolicy", Spaces(observations, actions), device="cpu"), tmp_path / "model.zip")
    with pytest.raises(ConfigError, match=message):
        policy_of(path, **settings)


def test_sb3_policy__below_a_run_needs_trust_again(tmp_path: Path) -> None:
    """The stored settings of a run do not make a file trusted."""
    path = save(
        lively(PPO("MlpPolicy", Spaces(vector(25), spaces.Box(-1, 1, (6,))), device="cpu")),
        tmp_path / "model.zip",
    )
    tiny_runs.train(
        tmp_path / "run",
        base_policy="model",
        checkpoint=str(path),
        trust_checkpoint=True,
        total_timesteps=32,
        eval_freq=0,
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["base"]["trust_checkpoint"] is True
    env = make_residual_env(tiny_runs.config(), 2).vec_env
    # the user's own run keeps the trust that the user gave it
    make_base_policy("model", ModelCfg(str(tmp_path / "run")), env)
    # that of another person does not
    (tmp_path / "run" / "best_model" / SIGNATURE_FILE).unlink()
    with pytest.raises(
        ConfigError,
        match=r"run/best_model/policy.safetensors, trained on .*model.zip is a Stable-Baselines3 zip",
    ):
        make_base_policy("model", ModelCfg(str(tmp_path / "run")), env)
    make_base_policy("model", ModelCfg(str(tmp_path / "run"), trust_checkpoint=True), env).act(
        env.reset(seed=0)[0]
    )


# --- torch.export -------------------------------------------------------------------------------------------


class Chunks(nn.Module):
    """[b, O] → [b, K, 2], or without K [b, 2]."""

    def __init__(self, size: int, steps: int | None):
        super().__init__()
        self.linear, self.steps = nn.Linear(size, 2 * (steps or 1)), steps

    def forward(self, state: Tensor) -> Tensor:
        out = self.linear(state)
        return out if self.steps is None else out.unflatten(1, (self.steps, 2))


def export(module: nn.Module, path: Path, size: int = 5, batch: int = 2, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("b")},) if dynamic else None
    torch.export.save(torch.export.export(module, (torch.zeros(batch, size),), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("batch", ["any", "one"])
@pytest.mark.parametrize("steps", [None, 3])
def test_program_policy__equals_the_module(batch: str, steps: int | None, tmp_path: Path) -> None:
    module = Chunks(5, steps)
    path = export(module, tmp_path / "m.pt2", batch=2 if batch == "any" else 1, dynamic=batch == "any")
    policy = policy_of(path, num_action_steps=None if steps is None else 2)
    assert (policy.chunk_size, policy.num_action_steps) == (steps or 1, 1 if steps is None else 2)
    obs = point_obs()
    chunk = policy.predict_action_chunk(obs, EVERYONE)
    with torch.no_grad():
        expected = module(obs["state"]).reshape(3, steps or 1, 2)
    np.testing.assert_allclose(chunk, expected, atol=1e-6)
    assert not chunk.requires_grad
    alone = torch.cat(
        [policy.predict_action_chunk({k: v[[w]] for k, v in obs.items()}, EVERYONE[[w]]) for w in range(3)]
    )
    assert torch.equal(alone, chunk)


class Pair(nn.Module):
    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[:, :2], state[:, :2]


def test_program_policy__shapes_that_do_not_match_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a.pt2 observes \(31,\); this env gives it \(5,\), state \(5,\)"):
        policy_of(export(Chunks(31, None), tmp_path / "a.pt2", size=31))
    with pytest.raises(
        ConfigError, match=r"b.pt2 returns \[1, 1, 5\] for one env; this env takes actions of 2"
    ):
        policy_of(export(nn.Identity(), tmp_path / "b.pt2"))
    with pytest.raises(
        ConfigError, match=r"c.pt2 cannot be run on this env's observations .* must return one tensor"
    ):
        policy_of(export(Pair(), tmp_path / "c.pt2"))
    with pytest.raises(ConfigError, match="num_action_steps must be from 1 to chunk_size 1, not 4"):
        policy_of(export(Chunks(5, None), tmp_path / "d.pt2"), num_action_steps=4)


# --- files that can run code --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.zip", "model.pt2"])
def test_trust_checkpoint__untrusted_files_are_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are not even opened."""
    path = tmp_path / name
    path.write_bytes(b"\x80\x05never read.")
    monkeypatch.setattr(builtins, "open", lambda *_: pytest.fail("the file was opened"))
    with pytest.raises(
        ConfigError, match=rf"{name} is a .*, and reading it can run any code .* --trust-checkpoint"
    ):
        make_base_policy("model", ModelCfg(str(path)), point_env())


@pytest.mark.parametrize("damage", ["garbage", "truncated", "another zip"])
@pytest.mark.parametrize("kind", ["sb3", "program"])
def test_checkpoint__damaged_file_is_an_error(kind: str, damage: str, tmp_path: Path) -> None:
    if kind == "sb3":
        path = save(PPO("MlpPolicy", Spaces(vector(5)), device="cpu"), tmp_path / "model.zip")
    else:
        path = export(Chunks(5, None), tmp_path / "model.pt2")
    whole = path.read_bytes()
    if damage == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "x")
    else:
        path.write_bytes(b"garbage" if damage == "garbage" else whole[: len(whole) // 2])
    kind_name = "a Stable-Baselines3 model" if kind == "sb3" else "an exported program"
    with pytest.raises(
        CheckpointError,
        match=f"base policy 'model': .*{path.name} cannot be read as {kind_name} .*; expected a file of",
    ) as caught:
        policy_of(path)
    assert "\n" not in str(caught.value)


def test_read_sb3_policy__missing_library_is_an_error_with_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.save_util", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"model.zip, is not available; install it with `pip install residual-rl\[sb3\]`",
    ):
        trusted.read_sb3_policy(tmp_path / "model.zip", trusted=True)


@pytest.mark.parametrize("value", [0, -3])
def test_model_cfg__num_action_steps_must_be_at_least_1(value: int) -> None:
    with pytest.raises(ConfigError, match=f"num_action_steps must be from 1 to 16384, not {value}"):
        ModelCfg(num_action_steps=value)

"""The task `gymnasium` on toy envs: flags, defaults, refusals, and every command on the env that the
user named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium_toys
import pytest
from tiny_runs import Fails, slow

from residual_rl.cli.main import main
from residual_rl.cli.train import parse
from residual_rl.config import TrainCfg
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.factory import make_vec_env
from residual_rl.registry import TASKS
from residual_rl.tasks.gymnasium import env_package
from residual_rl.tasks.gymnasium.config import GymnasiumCfg
from residual_rl.tasks.gymnasium.env_package import EnvPackage

TOY = ["--env-id", "Toys/Point-v0", "--env-modules", gymnasium_toys.MODULE]
EXPERT = [*TOY, "--adapter", f"{gymnasium_toys.MODULE}:Expert"]
BIASED = ["--base-policy", "expert", "--base.bias", "0.3", "0.0"]
TINY = ["--num-envs", "2", "--total-timesteps", "64", "--warmup-steps", "16", "--learning-starts", "16"]
TINY += ["--actor-starts", "16", "--batch-size", "8", "--hidden-sizes", "8", "--utd", "0.25"]
TINY += ["--gate-warmup-episodes", "1", "--eval-freq", "0", "--eval-episodes", "2", "--eval-envs", "2"]
TINY += ["--confirm-episodes", "2", "--num-threads", "1", "--residual-scale", "0.5"]


def run(*words: Any) -> None:
    assert main([*map(str, words)]) == 0


# --- flags and defaults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reward", "bootstrap"), [("sparse", "truncated"), ("env", "always")])
@pytest.mark.parametrize("learner", ["sac", "gated-sac", "ppo"])
def test_learner_overrides__bootstrapping_follows_the_kind_of_reward(
    learner: str, reward: str, bootstrap: str
) -> None:
    cfg = TrainCfg.default("gymnasium", None, learner, variant=reward)
    assert cfg.learner.bootstrap_at_done == bootstrap


def test_reward_mode__is_a_flag_on_which_other_defaults_depend() -> None:
    for words in ([], ["--base-policy", "expert"], ["--learner", "ppo"]):
        cfg = parse("gymnasium", ["--env-id", "A-v0", *words, "--reward-mode", "env"]).cfg
        assert (cfg.task.reward_mode, cfg.learner.bootstrap_at_done) == ("env", "always")
    words = ["--reward-mode", "env", "--bootstrap-at-done", "never"]
    assert parse("gymnasium", words).cfg.learner.bootstrap_at_done == "never"


def test_learner_overrides__published_settings_are_kept() -> None:
    cfg = TrainCfg.default("gymnasium", None, "policy-decorator", variant="env")
    assert cfg.learner == TrainCfg.default("so101-paper", None, "policy-decorator").learner


def test_train_cfg_default__learner_is_sac_and_over_an_expert_the_one_for_learned_bases() -> None:
    assert TrainCfg.default("gymnasium").learner_id == "sac"
    assert TrainCfg.default("metaworld").base_policy_id == "expert"
    assert TrainCfg.default("metaworld").learner_id == "gated-sac"


def test_list__has_a_row_for_each_package(capsys: pytest.CaptureFixture[str]) -> None:
    run("list")
    out = capsys.readouterr().out
    assert all(
        f"│ {name} " in out for name in ("gymnasium", "metaworld", "adroit", "fetch", "pusht", "expert")
    )


def test_gymnasium_cfg__eval_envs_bounds_the_envs_of_evaluations() -> None:
    spec = TASKS.get("gymnasium")
    assert [spec.eval_envs(n, GymnasiumCfg(eval_envs=3)) for n in (1, 3, 100)] == [1, 3, 3]
    assert spec.eval_envs(100, GymnasiumCfg()) == 16


# --- packages of envs ---------------------------------------------------------------------------------------


def package(module: str = "no_such_package") -> EnvPackage:
    return EnvPackage("Toys", module, setup="toys", install="toys==1.0")


def test_env_package_python__is_that_of_its_environment_or_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(env_package, "CHECKOUT", tmp_path)
    with pytest.raises(
        MissingDependencyError, match=r"Toys.*make setup-toys.*pip install toys==1\.0.*--python"
    ):
        package().python()
    assert package("gymnasium").python() == ""
    own = tmp_path / ".venv-toys" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert package().python() == package("gymnasium").python() == str(own)


def test_env_package_make__the_users_settings_take_precedence() -> None:
    toys = EnvPackage("Toys", "gymnasium", "toys", "toys", env_modules=(gymnasium_toys.MODULE,))
    cfg = GymnasiumCfg(
        env_id="Toys/Point-v0", adapter=f"{gymnasium_toys.MODULE}:Goals", python=sys.executable
    )
    env = toys.make(cfg, 1, 1, "cpu")
    assert "offset" in env.single_observation_space.spaces  # of the adapter
    env.close()


# --- refusals -----------------------------------------------------------------------------------------------


def habit(name: str) -> list[str]:
    return [*TOY, "--env-kwargs", f"habit={name}"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--env-id"),
        (["--env-id", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["--env-id", "A-v0", "--env-modules", "no_such_module"], "no_such_module"),
        ([*TOY, "--adapter", f"{gymnasium_toys.MODULE}:Nobody"], "Nobody"),
        ([*TOY, "--python", "no/such/python"], "no/such/python"),
        ([*TOY, "--sim-device", "cuda"], "run on the CPU"),
        (habit("discrete"), "Discrete(4); a residual needs a bounded Box"),
        (habit("unbounded"), "unbounded actions"),
        (habit("no-success"), "reports no success"),
        ([*TOY, "--env-kwargs", "habit"], "expected key=value"),
        (["--env-id", "Toys/PointWithoutLimit-v0", *TOY[2:]], "--max-episode-steps"),
        ([*TOY, "--base-policy", "expert"], "this env has no expert"),
    ],
)
def test_gymnasium__refusals_are_one_line_with_the_fix(
    flags: list[str], message: str, fails: Fails, tmp_path: Path
) -> None:
    assert message in fails(
        "train", "gymnasium", *flags, "--residual-scale", "0.5", "--output-dir", tmp_path / "r"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("learner", ["sac", "gated-sac"])
def test_gymnasium__image_only_observations_need_a_learner_that_sees_them(
    learner: str, fails: Fails, tmp_path: Path
) -> None:
    adapter = tmp_path / "blind.py"
    adapter.write_text(
        "class OnlyImages:\n    def observe(self, env, obs):\n        return {'eye': obs['camera']}\n"
    )
    flags = [*TOY, "--adapter", f"{adapter}:OnlyImages", "--learner", learner, "--residual-scale", "0.5"]
    message = fails("train", "gymnasium", *flags, "--output-dir", tmp_path / "r")
    assert "eye" in message
    assert "--obs-keys" in message


def test_gymnasium__success_can_be_named_or_follow_from_the_reward() -> None:
    for settings in ({"success_keys": ("distance",)}, {"success_reward": -32.0}):
        cfg = {"env_id": "Toys/Point-v0", "env_modules": (gymnasium_toys.MODULE,), **settings}
        make_vec_env("gymnasium", 1, num_threads=1, env_kwargs=("habit=no-success",), **cfg).close()
    with pytest.raises(ConfigError, match="success"):
        make_vec_env(
            "gymnasium",
            1,
            num_threads=1,
            env_kwargs=("habit=no-success",),
            **(cfg | {"success_reward": None}),
        )


# --- every command, on the env that the user named ----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the toy env, over its biased expert."""
    path = tmp_path_factory.mktemp("runs") / "toy"
    run("train", "gymnasium", *EXPERT, *BIASED, *TINY, "--output-dir", path)
    return path


@pytest.mark.slow
def test_gymnasium__train_eval_and_video(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((trained / "config.json").read_text("utf-8"))
    assert config["task"]["env_id"] == "Toys/Point-v0"
    assert config["base"]["bias"] == [0.3, 0.0]
    run(
        "eval",
        trained,
        "--n-episodes",
        4,
        "--eval-envs",
        2,
        "--compare-base",
        "--save-video",
        "--video-episodes",
        1,
    )
    assert (trained / "video.mp4").stat().st_size > 1000
    evaluation = json.loads((trained / "eval.json").read_text("utf-8"))
    assert {"env_distance", "success_once"} <= set(evaluation["policies"]["base"])
    run("train", "--resume", trained)
    assert "Nothing to train" in capsys.readouterr().out


@pytest.mark.slow
def test_gymnasium__view_writes_images_and_videos(trained: Path, tmp_path: Path) -> None:
    run(
        "view",
        "gymnasium",
        *EXPERT,
        "--policy",
        "expert",
        "--video",
        tmp_path / "a.mp4",
        "--cameras",
        tmp_path,
    )
    run("view", "gymnasium", "--policy", trained, "--video", tmp_path / "b.mp4")
    assert all((tmp_path / name).stat().st_size > 100 for name in ("a.mp4", "b.mp4", "default.png"))


@pytest.mark.slow
def test_gymnasium__demos_are_collected_and_replayed_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "demos.h5"
    run("demos", "collect", "gymnasium", *EXPERT, "--n-episodes", 3, "--num-threads", 1, "--output", file)
    run("demos", "replay", file, "--save-video")
    out = capsys.readouterr().out
    assert "3 of 3 episodes end as stored; largest drift 0" in out
    assert file.with_suffix(".mp4").stat().st_size > 1000


@pytest.mark.slow
def test_gymnasium__doctor_reports_on_the_named_env(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run("doctor", "gymnasium", *EXPERT, "--eval-envs", 4, "--quick")
    out = capsys.readouterr().out
    assert "256 env unit" in out
    assert "at most 30 steps at 12 Hz" in out
    assert "'expert' solves it" in out
    # an env that ignores seeds fails, and says that its episodes cannot be repeated
    assert main(["doctor", "gymnasium", *habit("ignores-seeds"), "--eval-envs", "4", "--quick"]) == 1
    assert "same seed, same start" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_gymnasium__distill_and_sweep(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts = ["--n-episodes", 2, "--eval-episodes", 2, "--eval-envs", 2, "--imitate.total-steps", 4]
    run("distill", trained, *amounts, "--output-dir", tmp_path / "student")
    last = capsys.readouterr().out.replace("\n", " ")
    assert "--env-id Toys/Point-v0 --env-modules gymnasium_toys" in " ".join(last.split())
    student = json.loads((tmp_path / "student" / "config.json").read_text("utf-8"))
    assert "expert_action" not in student["imitate"]["obs_keys"]
    # trials are processes of their own, which must find the module as well
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    grid = ["--grid", "residual_scale=0.2", "--seeds", 1, "--n-episodes", 2]
    run("sweep", "gymnasium", *EXPERT, *BIASED, *TINY[:-2], *grid, "--output-dir", tmp_path / "sweep")


@pytest.mark.slow
def test_serve__a_run_on_the_named_env(trained: Path) -> None:
    from residual_rl.cli import serve

    flags, cfg = serve._parse(str(trained), ["--protocol", "openpi"], serve._settings(str(trained), None))
    service = serve._make_service(flags, cfg)
    assert set(service.handshake.inputs) >= {"state", "expert_action"}
    service.env.close()


@pytest.mark.parametrize("task_id", slow("metaworld", "fetch"))
def test_env_package__a_missing_environment_is_one_line(
    task_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: Fails
) -> None:
    monkeypatch.setattr(env_package, "CHECKOUT", tmp_path)
    assert "make setup-" in fails("eval", task_id, "--n-episodes", "1")

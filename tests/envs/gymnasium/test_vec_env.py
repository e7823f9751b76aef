"""Gymnasium envs in worker processes: what they return, refusals, resuming and failures."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium_toys
import numpy as np
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.envs.gymnasium import vec_env as module
from residual_rl.envs.gymnasium.config import GymnasiumEnvCfg
from residual_rl.envs.gymnasium.vec_env import GymVecEnv
from residual_rl.envs.workers.pool import WorkerError
from residual_rl.envs.workers.process import close_fork_servers
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs

Make = Callable[..., GymVecEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[GymVecEnv] = []

    def make_env(habit: str = "", num_envs: int = 2, num_workers: int = 1, **settings: Any) -> GymVecEnv:
        kwargs = settings.pop("kwargs", {})
        pairs = tuple(f"{name}={json.dumps(value)}" for name, value in {"habit": habit, **kwargs}.items())
        defaults = {"env_id": "Toys/Point-v0", "env_modules": (gymnasium_toys.MODULE,)}
        made.append(
            GymVecEnv(GymnasiumEnvCfg(env_kwargs=pairs, **(defaults | settings)), num_envs, num_workers)
        )
        return made[-1]

    yield make_env
    for env in made:
        env.close()


def toy(habit: str = "", **kwargs: Any) -> gymnasium_toys.Point:
    """The toy itself, in this process."""
    return gymnasium_toys.Point(habit, **kwargs)


def toward_goals(obs: Obs) -> torch.Tensor:
    """Actions [B, 2] that name the goals."""
    return obs["goal_0"] / 256.0 - 1.0


def run_to_success(env: GymVecEnv, **options: Any) -> tuple[torch.Tensor, ...]:
    """Move to the goals until an episode has succeeded; returns the last step's results."""
    obs, _ = env.reset(seed=0)
    for _ in range(29):
        obs, reward, terminated, truncated, info = env.step(toward_goals(obs))
        if info["final_info"]["success_at_end"].any():
            return reward, terminated, truncated, info["final_info"]["success_at_end"]
    raise AssertionError("no success")


# --- what the env does --------------------------------------------------------------------------------------


def test_gym_vec_env_step__equals_the_env_itself(make: Make) -> None:
    env = make(num_envs=3, num_workers=2)
    obs, _ = env.reset(seed=11)
    alone = toy()
    theirs, _ = alone.reset(seed=12)
    for step in range(5):
        action = np.random.default_rng(step).uniform(-1, 1, (3, 2)).astype(np.float32)
        obs, *_, info = env.step(torch.from_numpy(action))
        theirs, *_, their_info = alone.step(256.0 + 256.0 * action[1].astype(np.float64))
        assert obs["point_position"][1].tolist() == theirs["point"]["position"][0].astype(np.float32).tolist()
        assert obs["goal_0"][1].tolist() == theirs["goal"][0].astype(np.float32).tolist()
        assert obs["goal_1"][1].tolist() == np.eye(3)[theirs["goal"][1] - 5].tolist()
        assert (obs["camera"][1].numpy() == theirs["camera"].transpose(1, 2, 0)).all()
        assert info["task_metrics"]["env_distance"][1].item() == pytest.approx(their_info["distance"])


def test_gym_vec_env__describes_the_env(make: Make) -> None:
    env = make()
    assert env.action_unit.tolist() == [256.0, 256.0]
    assert env.control_hz == 12.0
    assert env.max_episode_steps == 30
    assert env.task_name == "Toys/Point-v0"
    assert env.deterministic
    assert make(control_hz=50.0, max_episode_steps=7).control_hz == 50.0
    assert make(env_id="Toys/PointWithoutLimit-v0", max_episode_steps=7).max_episode_steps == 7


def test_gym_vec_env__metrics_of_the_env_have_a_prefix(make: Make) -> None:
    env = make()
    env.reset(seed=4)
    *_, info = env.step(torch.zeros(2, 2))
    assert info["final_info"]["seed"].tolist() == [4, 5]  # the env's own `seed` is 77
    assert info["final_info"]["env_seed"].tolist() == [77.0, 77.0]
    assert set(info["task_metrics"]) == {"env_distance", "env_seed"}
    assert env.step_info_names["task_metrics"] == ("env_distance", "env_seed")


def test_gym_vec_env__metric_that_the_env_leaves_out_keeps_its_value(make: Make) -> None:
    env = make("quiet", end_at_success=False)
    env.reset(seed=4)
    distances = [env.step(torch.zeros(2, 2))[4]["task_metrics"]["env_distance"].tolist() for _ in range(22)]
    assert distances[19] == distances[20] == distances[21]
    assert distances[18] != distances[19]


def test_reward_mode__sparse_is_one_at_success_and_env_is_its_own(make: Make) -> None:
    reward, terminated, _, success = run_to_success(make())
    assert success.any()
    assert reward.tolist() == success.float().tolist()
    assert terminated.tolist() == success.tolist()
    env = make(reward_mode="env")
    env.reset(seed=4)
    _, reward, *_, info = env.step(torch.zeros(2, 2))
    assert reward.tolist() == (-info["task_metrics"]["env_distance"]).tolist()
    assert list(info["reward_terms"]) == ["env"]


def test_end_at_success__off_goes_on_after_success(make: Make) -> None:
    env = make(end_at_success=False)
    assert not env.success_terminates
    _, terminated, truncated, _ = run_to_success(env)
    assert not terminated.any()
    assert not truncated.any()


def test_success_reward__counts_steps_as_success(make: Make) -> None:
    env = make("no-success", success_reward=-64.0)
    *_, success = run_to_success(env)
    distances = env.step(torch.zeros(2, 2))[4]["task_metrics"]["env_distance"]
    assert success.any()
    assert (distances > 64.0).any()


def test_success_reward__may_be_zero(make: Make) -> None:
    env = make("no-success", success_reward=0.0, adapter=f"{gymnasium_toys.MODULE}:Expert")
    env.reset(seed=0)
    assert not env.step(torch.zeros(2, 2))[4]["final_info"]["success_once"].any()


def test_success_keys__name_the_entry(make: Make) -> None:
    env = make(success_keys=("distance",))  # every distance but 0 is true
    env.reset(seed=0)
    assert env.step(torch.zeros(2, 2))[4]["final_info"]["success_once"].tolist() == [True, True]


def test_gym_vec_env_step__failure_terminates_without_success(make: Make) -> None:
    env = make("fails", kwargs={"at_step": 2})
    env.reset(seed=0)
    assert not env.step(torch.zeros(2, 2))[2].any()
    _, _, terminated, truncated, info = env.step(torch.zeros(2, 2))
    assert terminated.tolist() == [True, True]
    assert not truncated.any()
    assert not info["final_info"]["success_once"].any()
    assert info["final_info"]["episode_length"].tolist() == [2, 2]


def test_executed_action__is_what_the_env_reports(make: Make) -> None:
    env = make("clips")  # to 100 … 400
    env.reset(seed=0)
    *_, info = env.step(torch.tensor([[-1.0, 0.5], [1.0, 0.25]]))
    assert info["executed_action"].tolist() == [[-0.609375, 0.5], [0.5625, 0.25]]
    assert "executed_action" not in run_info(make())


def test_residual_env__stores_the_action_that_the_env_reports(make: Make) -> None:
    env = make("clips")
    residual_env = ResidualEnv(env, make_base_policy("zero", None, env), 1.0, 0.0)
    residual_env.reset(0)
    transition, _ = residual_env.step(torch.tensor([[-1.0, 0.5], [1.0, 0.25]]))
    assert transition.action.tolist() == [[-0.609375, 0.5], [0.5625, 0.25]]


def run_info(env: GymVecEnv) -> dict[str, Any]:
    env.reset(seed=0)
    return env.step(torch.zeros(env.num_envs, 2))[4]


def test_action_space__of_integers_is_rounded(make: Make) -> None:
    env = make("integers")
    env.reset(seed=0)
    env.step(torch.full((2, 2), 0.123))  # the toy asserts that its space contains the action


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [gymnasium_toys.MODULE, str(gymnasium_toys.FILE)])
def test_adapter__replaces_all_parts(make: Make, reference: str) -> None:
    env = make("ignores-seeds", adapter=f"{reference}:Goals", reward_mode="env", end_at_success=False)
    assert env.deterministic  # because of `seed`
    assert {name: space.shape for name, space in env.single_observation_space.items()} == {
        "state": (2,),
        "offset": (2,),
        "eye": (2, 3, 3),
        "expert_action": (2,),
    }
    obs, _ = env.reset(seed=3)
    alone = toy()
    theirs, _ = alone.reset(seed=3)
    assert torch.allclose(
        obs["state"][0], torch.as_tensor(theirs["goal"][0] - theirs["point"]["position"][0]).float()
    )
    assert torch.allclose(obs["expert_action"][0], torch.as_tensor(theirs["goal"][0] / 256.0 - 1.0).float())
    for _ in range(15):
        obs, reward, *_, info = env.step(obs["expert_action"])
    success = info["final_info"]["success_at_end"]
    assert success.tolist() == (info["task_metrics"]["env_distance"] < 64.0).tolist()
    assert torch.allclose(reward, (obs["expert_action"][:, 0] + 1.0) / 2.0)  # the toy's goal does not move


def test_adapter__may_have_one_method(make: Make) -> None:
    env = make(adapter=f"{gymnasium_toys.MODULE}:Expert")
    obs, _ = env.reset(seed=0)
    assert torch.allclose(obs["expert_action"], toward_goals(obs))
    assert "expert_action" not in make().single_observation_space.spaces


def test_env_modules__may_be_files_that_import_others(make: Make, tmp_path: Path) -> None:
    (tmp_path / "my_env.py").write_text(
        "import gymnasium\nfrom my_limits import LIMIT\n"
        "gymnasium.register('Mine-v0', 'gymnasium_toys:Point', max_episode_steps=LIMIT)\n"
    )
    (tmp_path / "my_limits.py").write_text("LIMIT = 9\n")
    assert make(env_id="Mine-v0", env_modules=(str(tmp_path / "my_env.py"),)).max_episode_steps == 9


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"habit": "discrete"}, r"^Toys/Point-v0 has actions Discrete\(4\); a residual needs a bounded Box"),
        (
            {"habit": "unbounded"},
            r"^Toys/Point-v0 has unbounded actions \(dimensions \[0, 1\]\); create it with",
        ),
        (
            {"habit": "no-success"},
            r"^Toys/Point-v0 reports no success: its info has distance, seed, name; name an entry with"
            r" --success-keys, or set --success-reward, or write an adapter",
        ),
        ({"success_keys": ("solved",)}, r"reports no success: its info has distance, seed, name, success;"),
        ({"env_id": "Toys/PointWithoutLimit-v0"}, r"has no time limit; set one with --max-episode-steps$"),
        ({"env_id": "Toys/Pint-v0"}, r"^cannot create Toys/Pint-v0: Environment `Pint` doesn't exist"),
        ({"env_id": ""}, r"^name the env with --env-id"),
        (
            {"env_modules": ("no_such_module",)},
            r"^cannot import no_such_module in .*python.*: No module named",
        ),
        ({"adapter": "no_such_module:A"}, r"^cannot import no_such_module in .*: No module named"),
        ({"adapter": "no_file.py:A"}, r"^cannot import no_file.py in .*: No module named"),
        ({"adapter": "gymnasium_toys:Nothing"}, r"^the adapter gymnasium_toys:Nothing is not a class"),
        ({"adapter": "gymnasium_toys:HIGH"}, r"gymnasium_toys:HIGH is not a class; expected module:Class or"),
        ({"python": "no/such/python"}, r"^cannot run the interpreter no/such/python: No such file"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_gym_vec_env__refuses_an_env_in_one_line(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_gym_vec_env__finds_success_that_is_only_reported_late(make: Make) -> None:
    assert make("late-success").max_episode_steps == 30


# --- seeds, the probe and resuming ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("habit", "difference"),
    [
        ("ignores-seeds", "after 0 steps"),
        ("keeps-state", "point_position after 0 steps"),
        ("global-random", "point_position after 1 steps"),
    ],
)
def test_deterministic__is_false_and_logged_where_an_episode_cannot_be_repeated(
    make: Make, habit: str, difference: str, caplog: pytest.LogCaptureFixture
) -> None:
    module._probes.clear()
    with caplog.at_level(logging.WARNING):
        env = make(habit, end_at_success=False)
    assert not env.deterministic
    assert "does not repeat an episode of equal seed and actions" in caplog.text
    assert f"{difference} differs" in caplog.text
    caplog.clear()
    assert not make(habit, end_at_success=False).deterministic
    assert not caplog.text  # once is enough
    # resuming starts new episodes
    env.reset(seed=0)
    env.step(torch.zeros(2, 2))
    env.load_state_dict(env.state_dict())
    assert run_seeds(env) == [2, 3]


def run_seeds(env: GymVecEnv) -> list[int]:
    return env.step(torch.zeros(2, 2))[4]["final_info"]["seed"].tolist()


def test_gym_vec_env__large_seeds_are_hashed_to_31_bits(make: Make) -> None:
    env = make(adapter=f"{gymnasium_toys.MODULE}:Goals")
    obs, info = env.reset(seed=(1 << 40))
    assert info["seed"].tolist() == [1 << 40, (1 << 40) + 1]
    assert not torch.equal(obs["state"][0], obs["state"][1])


def test_gym_vec_env_load_state_dict__warns_about_other_observations(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    env = make()
    env.reset(seed=0)
    env.step(torch.zeros(2, 2))
    state = env.state_dict()
    state["obs"]["state"][0, 0] += 1.0
    with caplog.at_level(logging.WARNING):
        env.load_state_dict(state)
    assert "could not be restored exactly" in caplog.text


# --- frames -------------------------------------------------------------------------------------------------


def test_gym_vec_env_scenes__are_frames_also_of_the_last_step(make: Make) -> None:
    env = make(num_envs=2, max_episode_steps=3)
    env.reset(seed=0)
    env.step(torch.zeros(2, 2))
    frames = env.render_scenes(env.scenes(), (16, 24))
    assert frames.shape == (2, 16, 24, 3)
    assert frames[0, 8, 8].tolist() == [1, 0, 0]  # the toy's red is the number of steps
    env.step(torch.zeros(2, 2))
    env.scenes()
    *_, info = env.step(torch.zeros(2, 2))
    assert env.render_scenes(info["final_scenes"], (32, 48))[1, 0, 0].tolist() == [3, 0, 0]
    assert env.render_scenes(env.scenes(), (32, 48))[1, 0, 0].tolist() == [0, 0, 0]
    # callers that do not ask for frames do not pay for them
    infos = [env.step(torch.zeros(2, 2))[4] for _ in range(3)]
    assert infos[-1]["_final_obs"].all()
    assert not any("final_scenes" in info for info in infos)


def test_render__off_and_cameras_are_errors(make: Make) -> None:
    env = make(render=False)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="--render"):
        env.scenes()
    with pytest.raises(ConfigError, match="no cameras"):
        env.render_scenes(torch.zeros(1, 3), (2, 2), camera="top")


def test_render__that_fails_is_an_error(make: Make) -> None:
    env = make("blind")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"^Toys/Point-v0 cannot be rendered: OSError: no display$"):
        env.scenes()


# --- failures of an env -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        (
            "raises",
            r"raised RuntimeError: the point fell off \(at .*gymnasium_toys\.py:\d+\); last lines of its"
            r" output: before the fall$",
        ),
        (
            "input",
            r"raised EOFError: it asks for input, which a worker process cannot give \(at .*_toys\.py"
            r":\d+\); last lines of its output: Continue\? \[y/n\]$",
        ),
        (
            "exits",
            r"raised SystemExit: enough \(at .*gymnasium_toys\.py:\d+\); last lines of its output: \(none\)$",
        ),
        ("killed", r"was killed by SIGKILL; last lines of its output: out of memory, surely$"),
    ],
)
def test_worker_error__of_an_env_has_its_last_output(make: Make, habit: str, message: str) -> None:
    env = make(habit, kwargs={"at_step": 21})  # after the probe
    env.reset(seed=0)
    for _ in range(20):
        env.step(torch.zeros(2, 2))
    with pytest.raises(
        WorkerError, match=rf"^Toys/Point-v0 worker 1 of 1 \(envs 0 to 1\) {message}"
    ) as caught:
        env.step(torch.zeros(2, 2))
    assert "\n" not in str(caught.value)


def test_worker_error__after_kill_9(make: Make) -> None:
    env = make(num_envs=3, num_workers=2)
    env.reset(seed=0)
    os.kill(env._pool.pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"worker 2 of 2 \(envs 1 to 2\) was killed by SIGKILL"):
        env.step(torch.zeros(3, 2))
    with pytest.raises(WorkerError, match="have ended; create a new env"):
        env.step(torch.zeros(3, 2))


def test_gym_vec_env__prints_of_an_env_disturb_nothing(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    env = make("prints")
    env.reset(seed=0)
    for _ in range(29):
        env.step(torch.zeros(2, 2))
    assert capfd.readouterr().out == ""
    # about 2 MB were printed, of which the end is kept
    output = env._pool._workers[0].output
    assert 0 < os.fstat(output.fileno()).st_size < 2 << 20


def test_gym_vec_env_step__nan_is_an_error_that_names_the_env(make: Make) -> None:
    env = make("nan", kwargs={"at_step": 21})
    env.reset(seed=6)
    for _ in range(20):
        env.step(torch.zeros(2, 2))
    with pytest.raises(NonFiniteError, match=r"state is not finite in env\(s\) \[0, 1\]") as caught:
        env.step(torch.zeros(2, 2))
    assert caught.value.dump["seed"].tolist() == [6, 7]
    assert caught.value.dump["actions_before"].shape == (20, 2, 2)


def test_gym_vec_env_close__closes_the_envs(make: Make, tmp_path: Path) -> None:
    env = make(f"closes:{tmp_path / 'note'}")
    env.close()
    assert (tmp_path / "note").read_text() == "closed"


def test_gym_vec_env_close__ends_what_an_env_has_started(make: Make) -> None:
    env = make("child", num_envs=1)
    output = env._pool._workers[0].output
    output.seek(0)
    pid = int(output.read().split()[-1])
    assert Path(f"/proc/{pid}").exists()
    env.close()
    deadline = 100
    while is_running(pid) and deadline:
        deadline -= 1
        signal.sigtimedwait([], 0.1)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- another interpreter ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A virtual environment with NumPy, Gymnasium and the toys: neither torch nor this package."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    installed = Path(sysconfig.get_path("purelib"))
    for name in (
        "numpy",
        "numpy.libs",
        "gymnasium",
        "cloudpickle",
        "farama_notifications",
        "typing_extensions.py",
    ):
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    (packages / "gymnasium_toys.py").symlink_to(gymnasium_toys.FILE)
    yield str(folder / "bin" / "python")
    close_fork_servers()


def test_python__steps_the_envs_in_an_interpreter_without_torch(
    make: Make, other_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for package in ("torch", "residual_rl"):
        assert subprocess.run([other_python, "-c", f"import {package}"], capture_output=True).returncode == 1
    settings = {"adapter": f"{gymnasium_toys.FILE}:Expert", "num_envs": 3, "num_workers": 2}
    mine, theirs = make(**settings), make(**settings, python=other_python)
    assert not mine.software
    assert theirs.software["python"] == platform.python_version()
    obs, _ = mine.reset(seed=0)
    their_obs, _ = theirs.reset(seed=0)
    for _ in range(31):
        assert all(torch.equal(obs[name], their_obs[name]) for name in obs)
        action = obs["expert_action"]
        obs, their_obs = mine.step(action)[0], theirs.step(action)[0]


def test_python__without_gymnasium_is_an_error(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    packages = next((tmp_path / "lib").glob("python*/site-packages"))
    for name in ("numpy", "numpy.libs"):
        if (Path(sysconfig.get_path("purelib")) / name).exists():
            (packages / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    with pytest.raises(
        ConfigError, match=r"/bin/python needs Gymnasium and NumPy: No module named 'gymnasium'$"
    ):
        make(python=str(tmp_path / "bin" / "python"))
    close_fork_servers()


def test_gymnasium_toys__follow_the_api() -> None:
    env = gymnasium.make("Toys/Point-v0")
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)

"""Collection and replay of demonstrations."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from demo_files import INFO, a_demo, maniskill, read, same, write
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.demos.collect import CollectCfg, collect, max_envs_in_memory, run_episodes
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.replay import Difference, make_env, replay
from residual_rl.demos.writer import DemoWriter
from residual_rl.envs.action_noise import _NOISE_STREAM, ActionNoise
from residual_rl.errors import BasePolicyError, CheckpointError, ConfigError, MissingDependencyError
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.registry import TASKS
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Obs
from residual_rl.utils.seeding import normal

# --- collection ---------------------------------------------------------------------------------------------


class FailingPolicy(fakes.Homing):
    """Raises an error after 25 queries."""

    calls = 0

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 25:
            raise ValueError("enough")
        return super().predict_action_chunk(obs, env_ids)


def point_env(num_envs: int, policy: Any = None, scale: float = 0.5, **settings: Any) -> ResidualEnv:
    env = fakes.PointEnv(fakes.PointCfg(**{"max_episode_steps": 6, **settings}), num_envs)
    return ResidualEnv(env, BasePolicyExecutor(policy or fakes.Homing(0.5), env), scale, penalty=3.0)


def wave(obs: Obs) -> Tensor:
    """A residual that depends on the observation only."""
    return torch.stack([obs["state"][:, 3] / 20, obs["position"][:, 0]], 1).clamp(-1, 1)


SEEDS = range(100, 120)


def episodes(num_envs: int, noise: float = 0.0, correlation: float = 0.0) -> list[Demo]:
    return list(run_episodes(point_env(num_envs), wave, SEEDS, noise, correlation))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_run_episodes__does_not_depend_on_the_number_of_envs(noise: float) -> None:
    one = episodes(1, noise, 0.9)
    assert [demo.seed for demo in one] == list(SEEDS)
    assert {demo.succeeded for demo in one} == {True, False}
    assert len({len(demo) for demo in one}) > 3
    for num_envs in (3, 7, 20, 25):
        assert all(same(a, b) for a, b in zip(one, episodes(num_envs, noise, 0.9), strict=True))


def test_run_episodes__matches_a_single_env_stepped_by_hand() -> None:
    """Observations, rewards and flags against the bare env, stepped by hand; base, residual and intended
    action against the composition."""
    for demo in episodes(7, 0.3, 0.5):
        env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=6), 1)
        obs, _ = env.reset(seed=[demo.seed])  # type: ignore[list-item]
        for t in range(len(demo)):
            assert all(np.array_equal(demo.obs[name][t], obs[name][0]) for name in demo.obs)
            base = fakes.Homing(0.5).predict_action_chunk(obs, torch.zeros(1))[:, 0]
            residual = wave(obs)
            assert demo.base_actions[t].tolist() == base[0].tolist()  # type: ignore[index]
            assert demo.residual_actions[t].tolist() == residual[0].tolist()  # type: ignore[index]
            intended = (base + 0.5 * residual).clamp(-1, 1)
            assert demo.intended_actions[t].tolist() == intended[0].tolist()  # type: ignore[index]
            obs, reward, terminated, truncated, info = env.step(torch.from_numpy(demo.actions[t : t + 1]))
            assert demo.rewards[t] == reward[0]  # type: ignore[index] # without the residual's penalty of 3
            assert (demo.terminated[t], demo.truncated[t]) == (bool(terminated[0]), bool(truncated[0]))
            assert demo.success[t] == info["final_info"]["success_at_end"][0]  # type: ignore[index]
        final = info["final_obs"]
        assert all(np.array_equal(demo.obs[name][-1], final[name][0]) for name in demo.obs)
        assert bool(terminated[0] | truncated[0])


def test_action_noise__is_autoregressive_in_seed_and_step() -> None:
    for demo in episodes(5, 0.3, 0.8):
        value = torch.zeros(1, 2, dtype=torch.float64)
        for t in range(len(demo)):
            white = normal(torch.tensor([demo.seed]), _NOISE_STREAM + t, 2)
            value = white if t == 0 else 0.8 * value + 0.6 * white  # 0.6² = 1 - 0.8²
            expected = (torch.from_numpy(demo.intended_actions[t : t + 1]) + 0.3 * value).clamp(-1, 1).float()  # type: ignore[index]
            assert demo.actions[t].tolist() == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_action_noise__has_the_configured_deviation_and_correlation() -> None:
    env = fakes.PointEnv(fakes.PointCfg(), 500)
    env.residual_unit = torch.tensor([1.0, 0.25])
    env.reset(seed=0)
    action_noise = ActionNoise(env, 0.2, 0.9)
    action_noise.restart(np.arange(500), range(500))
    values = []
    for _ in range(40):
        values.append(action_noise.before_step(torch.zeros(500, 2), env.active))
    noise = torch.stack(values)
    for t in (0, 39):
        assert noise[t].std(0).tolist() == pytest.approx([0.2, 0.05], rel=0.1)
    assert float(torch.corrcoef(torch.stack([noise[20, :, 0], noise[21, :, 0]]))[0, 1]) == pytest.approx(
        0.9, abs=0.03
    )
    assert float(torch.corrcoef(torch.stack([noise[20, :, 0], noise[20, :, 1]]))[0, 1]) == pytest.approx(
        0.0, abs=0.15
    )


class Chunks(fakes.Homing):
    """Predicts chunks of three equal actions."""

    chunk_size = num_action_steps = 3

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        return super().predict_action_chunk(obs, env_ids).expand(-1, 3, -1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_chunk_residual_env__residuals_are_recorded_per_step(noise: float) -> None:
    def run(num_envs: int) -> list[Demo]:
        env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=7), num_envs)
        chunked = ChunkResidualEnv(env, BasePolicyExecutor(Chunks(0.5), env), 0.5)
        return list(run_episodes(chunked, lambda obs: 0.3 * obs["base_action"], SEEDS, noise, 0.9))

    one = run(1)
    assert [demo.seed for demo in one] == list(SEEDS)
    assert all(same(a, b) for a, b in zip(one, run(6), strict=True))
    for demo in one:
        assert len(demo) == 7 or demo.succeeded
        assert demo.base_actions is not None
        assert demo.residual_actions is not None
        assert demo.residual_actions == pytest.approx(0.3 * demo.base_actions)
        assert demo.intended_actions == pytest.approx((1.15 * demo.base_actions).clip(-1, 1), abs=1e-6)
        assert np.array_equal(demo.base_actions[0], demo.base_actions[min(2, len(demo) - 1)])
        env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=7), 1)
        env.reset(seed=[demo.seed])  # type: ignore[list-item]
        for t, action in enumerate(demo.actions):
            info = env.step(torch.from_numpy(action[None]))[-1]
            assert np.array_equal(info["final_obs"]["state"][0], demo.obs["state"][t + 1])


def test_run_episodes__stores_no_residual_and_no_intended_actions_without_them() -> None:
    env = point_env(4)
    demo = next(run_episodes(env, no_residual(env), SEEDS, with_residual=False))
    assert demo.residual_actions is None
    assert demo.intended_actions is demo.actions
    assert np.array_equal(demo.actions, demo.base_actions)  # type: ignore[arg-type]


def collected(path: Path, num_envs: int = 3, **settings: Any) -> tuple[Any, list[Demo]]:
    env = point_env(num_envs)
    with DemoWriter(path, INFO, overwrite=True) as writer:
        result = collect(
            env, no_residual(env), CollectCfg(first_seed=100, **settings), writer, with_residual=False
        )
    return result, read(path) if writer.published else []


def test_only_success__stores_the_first_successful_seeds(tmp_path: Path) -> None:
    every, demos = collected(tmp_path / "all.h5", n_episodes=30)
    assert (every.ran, [demo.seed for demo in demos]) == (30, list(range(100, 130)))
    solved = [demo.seed for demo in demos if demo.succeeded]
    assert len(demos[0].actions) != len(demos[1].actions)
    assert 6 < len(solved) < 24
    for num_envs in (1, 4, 16):
        result, some = collected(tmp_path / "some.h5", num_envs, n_episodes=6, only_success=True)
        assert [demo.seed for demo in some] == solved[:6]
        assert (result.ran, result.solved) == (solved[5] - 100 + 1, 6)


def test_only_success__stops_after_the_largest_number_of_tries(tmp_path: Path) -> None:
    """A base policy that never moves rarely succeeds: if it starts at the origin or the wind carries it
    there."""
    env = point_env(4, fakes.Homing(0.0))
    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        cfg = CollectCfg(n_episodes=10, only_success=True, first_seed=100)
        result = collect(env, no_residual(env), cfg, writer, with_residual=False)
    assert result.ran == 20 * 10
    assert 0 < result.solved == writer.published < 10
    assert len(read(tmp_path / "x.h5")) == result.solved


def test_collect__reports_progress_and_can_be_stopped(tmp_path: Path) -> None:
    progress: list[tuple[int, float]] = []
    env = point_env(4)
    steps = itertools.count()
    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        cfg = CollectCfg(n_episodes=20, first_seed=100)
        result = collect(
            env,
            no_residual(env),
            cfg,
            writer,
            with_residual=False,
            stopped=lambda: next(steps) == 20,
            on_progress=lambda n, rate: progress.append((n, rate)),
        )
    assert next(steps) == 21
    assert 4 <= result.ran < 20
    assert progress[-1] == (result.ran, result.solved / result.ran)
    assert [n for n, _ in progress] == list(range(1, result.ran + 1))
    seeds = [demo.seed for demo in read(tmp_path / "x.h5")]
    assert seeds == sorted(seeds)  # type: ignore[type-var]
    assert len(seeds) == result.ran


def test_collect__keeps_complete_episodes_if_the_policy_fails(tmp_path: Path) -> None:
    env = point_env(4, FailingPolicy(0.5))

    def run() -> None:
        with DemoWriter(tmp_path / "x.h5", INFO) as writer:
            collect(
                env, no_residual(env), CollectCfg(n_episodes=20, first_seed=100), writer, with_residual=False
            )

    with pytest.raises(BasePolicyError, match="failed: ValueError: enough"):
        run()
    assert len(read(tmp_path / "x.h5")) >= 4
    assert isinstance(env.vec_env, fakes.PointEnv)
    assert env.step_hook is None  # the noise is removed


def test_run_episodes__refuses_an_env_that_draws_seeds_out_of_order() -> None:
    env = point_env(3)
    draw = env.vec_env.episode_seeds.draw
    env.vec_env.episode_seeds.draw = lambda n: draw(n).flip(0)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="does not draw its episode seeds in order"):
        list(run_episodes(env, no_residual(env), SEEDS))


def test_max_envs_in_memory__divides_the_memory_by_the_size_of_an_episode() -> None:
    env = fakes.PointEnv(fakes.PointCfg(), 1)
    # 9 float32 values per step, 11 observations in 10 steps
    assert max_envs_in_memory(env) == (1 << 30) // (9 * 4 * 11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_episodes": 0}, "n_episodes must be at least 1, not 0"),
        ({"num_envs": 0}, "num_envs must be from 1 to 1048576, not 0"),
        ({"noise": -0.1}, "noise must be at least 0, not -0.1"),
        ({"noise": float("nan")}, "noise must be finite"),
        ({"noise_correlation": 1.0}, "noise_correlation must be at least 0 and below 1, not 1.0"),
        ({"first_seed": -1}, "first_seed must be at least 0 and below 4611686018427387904, not -1"),
    ],
)
def test_collect_cfg__names_an_invalid_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CollectCfg(**settings)


# --- replay -------------------------------------------------------------------------------------------------


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the task of the fakes."""
    TASKS.all()
    monkeypatch.setattr(TASKS, "_specs", {**TASKS._specs, "point": fakes.POINT_TASK})


@pytest.mark.usefixtures("point")
@pytest.mark.parametrize("num_envs", [1, 4, 30])
def test_replay__is_bit_exact(tmp_path: Path, num_envs: int) -> None:
    path = write(tmp_path / "x.h5", episodes(6, 0.3))
    with Demonstrations(path) as demos:
        env = make_env(demos, num_envs)
        assert env.max_episode_steps == 6
        results = list(replay(env, demos, range(len(demos))))
        assert [r.episode for r in results] == list(range(20))
        for result, demo in zip(results, demos, strict=True):
            assert (result.steps, result.demo_steps, result.seed) == (len(demo), len(demo), demo.seed)
            assert (result.drift.value, result.start.value, str(result.drift)) == (0.0, 0.0, "0")
            assert (result.reproduced, result.success) == (True, demo.succeeded)
        assert [r.episode for r in replay(env, demos, [7, 3])] == [7, 3]


@pytest.mark.usefixtures("point")
def test_replay__reports_the_largest_difference_from_the_stored_episode(tmp_path: Path) -> None:
    demo = next(demo for demo in episodes(6) if len(demo) == 6 and not demo.succeeded)
    moved = dataclasses.replace(demo, obs={name: value.copy() for name, value in demo.obs.items()})
    moved.obs["position"][4, 1] += 0.25
    late = dataclasses.replace(
        demo, obs={**demo.obs, "position": demo.obs["position"] + np.float32(0.5)}, success=np.ones(6, bool)
    )
    other = dataclasses.replace(demo, seed=demo.seed + 1, success=None)  # type: ignore[operator]
    short = Demo(
        actions=demo.actions[:4],
        obs={},
        terminated=demo.terminated[:4],
        truncated=demo.truncated[:4],
        seed=demo.seed,
    )
    for name, one, check in (
        (
            "moved",
            moved,
            lambda r: (
                r.drift.value == pytest.approx(0.25),
                r.drift.name,
                r.drift.step,
                r.start.value,
                r.reproduced,
            ),
        ),
        (
            "late",
            late,
            lambda r: (
                r.drift.value == pytest.approx(0.5),
                r.start.name,
                r.start.value == pytest.approx(0.5),
                r.reproduced,
            ),
        ),
        ("other", other, lambda r: (r.start.value > 0.01, r.reproduced, r.stored_success)),
        ("short", short, lambda r: (r.steps, r.success, r.reproduced, r.drift.value)),
    ):
        with Demonstrations(write(tmp_path / f"{name}.h5", [one])) as demos:
            (result,) = replay(make_env(demos, 1), demos, [0])
        expected: dict[str, tuple[Any, ...]] = {
            "moved": (True, "position", 4, 0.0, True),
            "late": (True, "position", True, False),
            "other": (True, None, None),
            "short": (4, False, None, 0.0),
        }
        assert check(result) == expected[name], name  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("point")
def test_replay__ends_with_the_envs_episode(tmp_path: Path) -> None:
    demo = next(demo for demo in episodes(6) if demo.succeeded and len(demo) < 6)
    more = 10
    longer = Demo(
        actions=np.concatenate([demo.actions, np.zeros((more, 2), np.float32)]),
        obs={"position": np.concatenate([demo.obs["position"], np.zeros((more, 2), np.float32)])},
        terminated=np.zeros(len(demo) + more, bool),
        truncated=np.zeros(len(demo) + more, bool),
        seed=demo.seed,
        success=np.concatenate([demo.success, np.zeros(more, bool)]),  # type: ignore[list-item]
    )
    with Demonstrations(write(tmp_path / "x.h5", [longer])) as demos:
        (result,) = replay(make_env(demos, 1), demos, [0])
    assert (result.steps, result.demo_steps, result.success, result.reproduced, result.drift.value) == (
        len(demo),
        len(longer),
        True,
        True,
        0.0,
    )


def test_difference__nan_or_another_shape_is_infinite() -> None:
    difference = Difference()
    difference.update("a", 1, np.zeros(2), np.array([0.0, np.nan]))
    assert (difference.value, difference.name, difference.step) == (np.inf, "a", 1)
    difference = Difference()
    difference.update("a", 2, np.zeros(2), np.zeros(3))
    assert difference.value == np.inf
    difference = Difference()
    # uint8 values do not wrap around.
    difference.update("image", 3, np.array([250, 3], np.uint8), np.array([3, 250], np.uint8))
    assert difference.value == 247.0


@pytest.mark.usefixtures("point")
@pytest.mark.parametrize(
    ("env_id", "kwargs", "action_dim", "error", "message"),
    [
        ("poimt", {}, 2, ConfigError, "unknown task 'poimt'; did you mean 'point'"),
        (
            "point",
            {"speed": 1},
            2,
            CheckpointError,
            (
                "has settings that task 'point' of this release does not accept: unknown setting of"
                " PointCfg 'speed'"
            ),
        ),
        ("point", {}, 3, CheckpointError, "has actions of size 3, but those of task 'point' have size 2"),
    ],
)
def test_make_env__refuses_demonstrations_of_another_task(
    tmp_path: Path, env_id: str, kwargs: dict[str, Any], action_dim: int, error: type[Exception], message: str
) -> None:
    demo = a_demo(actions=np.zeros((3, action_dim), np.float32))
    path = write(tmp_path / "x.h5", [demo], {**INFO, "env_info": {"env_id": env_id, "env_kwargs": kwargs}})
    with Demonstrations(path) as demos, pytest.raises(error, match=message) as caught:
        make_env(demos, 1)
    assert str(path) in str(caught.value)


def test_make_env__names_the_extra_for_maniskill_demonstrations(tmp_path: Path) -> None:
    with (
        Demonstrations(maniskill(tmp_path / "x.h5")) as demos,
        pytest.raises(MissingDependencyError, match=r"residual-rl\[maniskill\]"),
    ):
        make_env(demos, 1)

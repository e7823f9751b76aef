"""What a residual observes of the base policy's chunk: `base_chunk` and `chunk_position`, in the env and in
everything that runs a trained policy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from chunky import CHUNKY
from gymnasium import spaces
from tiny_runs import Fails, different, last_state
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.model import ModelCfg
from residual_rl.chunk_residual_env import ChunkResidualEnv
from residual_rl.cli import view
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.demos.episode import Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.transitions import episodes
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.exported_policy import load_policy
from residual_rl.factory import make_learner, make_residual_env, with_obs_keys
from residual_rl.gymnasium_env import GymnasiumEnv, GymnasiumVecEnv
from residual_rl.imitation.distill import default_imitation
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec
from residual_rl.remote.service import PolicyService
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Transition

LEARNED = dataclasses.replace(CHUNKY, id="learned", learned=True)
COUNTING = BasePolicySpec(
    id="counting", summary="action k of the n-th chunk is (0.1·n, 0.01·k)", make=f"{__name__}:make_counting"
)


def make_counting(cfg: None, env: VecEnv) -> fakes.Recorder:
    return fakes.Recorder(env.num_envs, chunk_size=4, num_action_steps=3)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    added = ((TASKS, fakes.POINT_TASK), (BASE_POLICIES, CHUNKY), (BASE_POLICIES, LEARNED))
    for registry, spec in (*added, (BASE_POLICIES, COUNTING)):
        registry.all()  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_specs", {**registry._specs, spec.id: spec})  # type: ignore[attr-defined]


def counting_env(
    max_episode_steps: int, num_envs: int = 2, kind: type[ResidualEnv] = ResidualEnv
) -> ResidualEnv:
    env = fakes.PointEnv(fakes.PointCfg(max_episode_steps=max_episode_steps), num_envs)
    policy = BasePolicyExecutor(make_counting(None, env), env, "base policy 'it'")
    return kind(env, policy, 0.0, chunk_obs=True)


def rest(chunk: int, position: int) -> list[float]:
    """`base_chunk` at a position of the n-th chunk since the reset, of which three actions are executed."""
    return [x for k in range(position, position + 3) for x in (0.1 * chunk, 0.01 * min(k, 2))]


# --- the env ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_episode_steps", "final"),
    [
        (5, (2, 2)),  # the third action of the second chunk, which was not executed
        (3, (2, 0)),  # a new chunk, only for the final observation
    ],
)
def test_chunk_obs__are_those_of_the_old_chunk_in_the_final_observation(
    max_episode_steps: int, final: tuple[int, int]
) -> None:
    env = counting_env(max_episode_steps)
    env.reset(seed=0)
    for t in range(2 * max_episode_steps):
        step = t % max_episode_steps
        transition, _ = env.step(torch.zeros(2, 2))
        is_last = step == max_episode_steps - 1
        now, then = divmod(step, 3), final if is_last else divmod(step + 1, 3)
        for obs, (chunk, position) in (
            (transition.obs, (now[0] + 1, now[1])),
            (transition.next_obs, then if is_last else (then[0] + 1, then[1])),
        ):
            np.testing.assert_allclose(obs["base_chunk"], [rest(chunk, position)] * 2, atol=1e-7)
            np.testing.assert_allclose(obs["chunk_position"], [[position / 3]] * 2, atol=1e-7)
            assert torch.equal(obs["base_chunk"][:, :2], obs["base_action"])
        if is_last:  # the next episode begins with its own first chunk
            np.testing.assert_allclose(env.obs["base_chunk"], [rest(1, 0)] * 2, atol=1e-7)
            assert not env.obs["chunk_position"].any()


def test_chunk_obs__of_one_env_do_not_depend_on_the_ends_of_others() -> None:
    env = counting_env(5)
    env.reset(seed=0)
    env.step(torch.zeros(2, 2))
    env.vec_env.reset(seed=[7], mask=torch.tensor([False, True]))  # two episodes out of step
    seen = []
    for _ in range(6):
        transition, _ = env.step(torch.zeros(2, 2))
        seen.append([transition.next_obs["chunk_position"], env.obs["chunk_position"]])
    third = 1 / 3
    # env 0 ends after 4 of these steps, and env 1 after 5, with its chunks two and three
    expected = [[2, 2], [0, 0], [1, 1], [2, 2], [1, 0], [2, 1]]
    np.testing.assert_allclose(
        [pair[0].flatten().tolist() for pair in seen], third * np.array(expected), atol=1e-6
    )
    started = [[2, 2], [0, 0], [1, 1], [0, 2], [1, 0], [2, 1]]
    np.testing.assert_allclose(
        [pair[1].flatten().tolist() for pair in seen], third * np.array(started), atol=1e-6
    )


def test_observation_space__contains_the_chunk_on_request_only() -> None:
    env = counting_env(5)
    assert set(env.observation_space) - set(env.vec_env.single_observation_space) == {  # type: ignore[arg-type]
        "base_action",
        "elapsed_steps",
        "base_chunk",
        "chunk_position",
    }
    for _ in range(4):
        obs = env.obs or env.reset(seed=0)
        assert all(space.contains(obs[name][0].numpy()) for name, space in env.observation_space.items())
        env.step(torch.zeros(2, 2))
    plain = ResidualEnv(env.vec_env, env.base_policy, 0.0)
    assert (
        set(plain.observation_space)
        == set(plain.reset(seed=0))
        == set(env.observation_space)
        - {
            "base_chunk",
            "chunk_position",
        }
    )


def test_residual_env_state_dict__restores_the_chunk_observations_bit_for_bit() -> None:
    env, resumed = counting_env(7, 3), counting_env(7, 3)
    env.reset(seed=0)
    for steps in range(9):
        resumed.load_state_dict(env.state_dict())
        assert different(resumed.obs, env.obs) == []
        assert (steps % 7) % 3 == round(3 * float(env.obs["chunk_position"][0]))
        mine, theirs = (one.step(torch.zeros(3, 2))[0] for one in (resumed, env))
        assert different(mine.next_obs, theirs.next_obs) == []


def test_chunk_obs__without_a_chunk_are_an_error() -> None:
    env = fakes.PointEnv(fakes.PointCfg(), 2)
    single = BasePolicyExecutor(fakes.Homing(), env, "base policy 'homing'")
    message = (
        r"^base policy 'homing' executes one action of each chunk \(num_action_steps 1\), so there is no"
    )
    with pytest.raises(ConfigError, match=f"{message} base_chunk and chunk_position to observe"):
        ResidualEnv(env, single, 0.5, chunk_obs=True)
    with pytest.raises(ConfigError, match="with --chunk whole, base_action is the whole chunk"):
        counting_env(5, kind=ChunkResidualEnv)


# --- the default observations of learners -------------------------------------------------------------------


def keys(base_policy: str, learner: str, **settings: Any) -> tuple[str, ...] | None:
    cfg = replace_fields(TrainCfg.default("point", base_policy, learner), settings)
    env = make_residual_env(cfg, 2)
    names: tuple[str, ...] | None = with_obs_keys(cfg, env).learner.obs_keys
    assert with_obs_keys(cfg, env) == with_obs_keys(with_obs_keys(cfg, env), env)
    assert env.chunk_obs == ("base_chunk" in env.observation_space.spaces)
    assert env.chunk_obs == ("base_chunk" in (names or ()))
    return names


@pytest.mark.parametrize("learner", ["sac", "gated-sac", "td3", "ppo"])
def test_with_obs_keys__adds_the_inputs_and_the_chunk_of_a_learned_base(learner: str) -> None:
    own = ("state", "base_action") if learner == "ppo" else ("state",)
    assert keys("learned", learner) == (*own, "position", "base_chunk", "chunk_position")
    assert keys("chunky", learner) == own  # a controller
    assert keys("learned", learner, chunk="whole") == (*own, "position")
    assert keys("learned", learner, obs_keys=("state",)) == ("state",)
    assert keys("chunky", learner, obs_keys=("position", "base_chunk")) == ("position", "base_chunk")


def test_with_obs_keys__published_settings_stay_as_they_are() -> None:
    assert keys("learned", "policy-decorator", chunk="step") == ("state",)


def test_with_obs_keys__adds_what_the_base_observes_and_the_joint_targets_of_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned = dataclasses.replace(BASE_POLICIES.get("jacobian"), learned=True)
    for spec, more in (
        (BASE_POLICIES.get("jacobian"), ()),
        (learned, ("joint_target", "sheet_pose", "goal")),
    ):
        monkeypatch.setitem(BASE_POLICIES._specs, "jacobian", spec)
        for learner, own in (("sac", ("state",)), ("ppo", ("state", "base_action"))):
            cfg = TrainCfg.default("so101-paper", "jacobian", learner)
            env = make_residual_env(replace_fields(cfg, {"num_threads": 1}), 1)
            assert with_obs_keys(cfg, env).learner.obs_keys == (*own, *more)
            env.close()


def test_make_residual_env__observes_the_chunk_for_a_critic() -> None:
    cfg = TrainCfg.default("point", "chunky", "ppo")
    cfg = replace_fields(cfg, {"obs_keys": ("state",), "critic_obs_keys": ("state", "base_chunk")})
    env = make_residual_env(cfg, 2)
    assert env.chunk_obs
    assert not make_residual_env(cfg, 2, base_policy_id="zero").chunk_obs
    learner = make_learner(replace_fields(cfg, {"minibatch_size": 64}), env)
    learner.observe(env.step(learner.act(env.reset(seed=0)))[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--base-policy zero", "base policy 'zero' executes one action of each chunk"),
        ("--base-policy chunky --chunk whole", "with --chunk whole, base_action is the whole chunk"),
    ],
)
def test_train__obs_keys_that_do_not_exist_are_refused_in_one_line(
    fails: Fails, tmp_path: Path, flags: str, message: str
) -> None:
    arguments = [*flags.split(), "--obs-keys", "state", "base_chunk", "--output-dir", tmp_path / "run"]
    assert message in fails("train", "point", *arguments)
    assert not (tmp_path / "run").exists()


# --- demonstrations -----------------------------------------------------------------------------------------


def test_episodes__observe_the_chunks_of_the_queried_base(tmp_path: Path) -> None:
    """Four steps: three of the first chunk, and the first of the second."""
    from demo_files import write

    zeros, never = np.zeros((5, 5), np.float32), np.zeros(4, bool)
    demo = Demo(
        actions=np.zeros((4, 2), np.float32),
        obs={"state": zeros, "position": zeros[:, :2]},
        rewards=np.zeros(4, np.float32),
        terminated=never,
        truncated=never,
        success=never,
    )
    path = write(tmp_path / "d.h5", [demo])
    settings = {"demos": str(path), "demo_share": 0.5, "obs_keys": ("state", "chunk_position", "base_chunk")}
    cfg = replace_fields(TrainCfg.default("point", "counting", "sac"), {**settings, "max_episode_steps": 6})
    env = make_residual_env(cfg, 2)
    with Demonstrations.open(path) as demos:
        [transition] = episodes(demos, cfg, env)
    places = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    for obs, seen in ((transition.obs, places[:4]), (transition.next_obs, places[1:])):
        assert set(obs) == {"state", "base_action", "elapsed_steps", "base_chunk", "chunk_position"}
        np.testing.assert_allclose(obs["base_chunk"], [rest(*place) for place in seen], atol=1e-7)
        np.testing.assert_allclose(obs["chunk_position"], [[p / 3] for _, p in seen], atol=1e-7)
    assert transition.next_obs["elapsed_steps"].flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    make_learner(cfg, env).load_demonstrations([transition])  # type: ignore[attr-defined]


# --- Gymnasium ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GymnasiumEnv, GymnasiumVecEnv])
def test_gymnasium_env__observes_named_observations_of_the_base(kind: Any) -> None:
    names = ["position", "base_action", "base_chunk", "chunk_position"]
    env = kind("point", base_policy="counting", obs_keys=names, max_episode_steps=4)
    space = getattr(env, "single_observation_space", env.observation_space)
    assert isinstance(space, spaces.Dict)
    assert set(space) == set(names)
    obs, _ = env.reset(seed=3)
    for place in [(1, 0), (1, 1), (1, 2), (2, 0)]:
        assert env.observation_space.contains(obs)
        np.testing.assert_allclose(obs["base_chunk"].ravel(), rest(*place), atol=1e-7)
        np.testing.assert_allclose(obs["chunk_position"].ravel(), [place[1] / 3], atol=1e-7)
        obs, _, _, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert truncated
    final = info["final_obs"] if kind is GymnasiumVecEnv else obs
    np.testing.assert_allclose(final["base_chunk"].ravel(), rest(2, 1), atol=1e-7)
    plain = kind("point", base_policy="counting")
    assert not plain.residual_env.chunk_obs
    assert not isinstance(plain.observation_space, spaces.Dict)


def test_gymnasium_env__unknown_observations_are_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown observation 'positions'"):
        GymnasiumEnv("point", obs_keys=["positions"])
    with pytest.raises(UnknownNameError, match="unknown observation 'base_action'"):
        GymnasiumEnv("point", obs_keys=["state", "base_action"])  # there is no base policy
    with pytest.raises(ConfigError, match="executes one action of each chunk"):
        GymnasiumEnv("point", base_policy="zero", obs_keys=["state", "base_chunk"])


# --- a trained policy in everything that runs it ------------------------------------------------------------

SEEDS = [11, 3, 8]
TINY = ["--num-envs", "4", "--num-steps", "6", "--hidden-sizes", "8", "--num-threads", "1"]
TINY += ["--eval-freq", "0", "--eval-episodes", "4", "--save-freq", "24", "--max-episode-steps", "8"]
LEARNERS = {
    "ppo": [
        "--minibatch-size",
        "12",
        "--num-epochs",
        "2",
        "--learning-rate",
        "0.03",
        "--learning-rate-schedule",
        "constant",
    ],
    "sac": [
        *("--learning-starts", "8", "--warmup-steps", "8", "--actor-starts", "16", "--batch-size", "16"),
        *("--actor-learning-rate", "0.01", "--actor-ema-power", "0"),
    ],
}


def trained(path: Path, learner: str, steps: int = 96) -> Path:
    """A run over the learned base, with the learner's default observations."""
    arguments = ["--base-policy", "learned", "--learner", learner, *TINY, *LEARNERS[learner]]
    arguments += ["--total-timesteps", str(steps), "--output-dir", str(path)]
    assert main(["train", "point", *arguments]) == 0
    return path


def actions_of(env: ResidualEnv, policy: Any) -> dict[int, list[list[float]]]:
    """The executed actions of the episodes of `SEEDS`."""
    actions: dict[int, list[list[float]]] = {}
    running: dict[int, list[list[float]]] = {env_id: [] for env_id in range(env.num_envs)}

    def note(transition: Transition, info: dict[str, Any]) -> None:
        for env_id, action in enumerate(transition.action.tolist()):
            running[env_id].append(action)
            if info["_final_info"][env_id]:
                actions[int(info["final_info"]["seed"][env_id])] = running[env_id]
                running[env_id] = []

    evaluate(env, policy, SEEDS, on_step=note)
    return actions


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["ppo", "sac"])
def test_default_obs_keys__work_in_everything_that_runs_a_trained_policy(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", learner)
    own = ["state", "base_action"] if learner == "ppo" else ["state"]
    # the run and its exported policies store what was observed
    expected_keys = [*own, "position", "base_chunk", "chunk_position"]
    for file in (run / "config.json", run / "final_model" / "config.json"):
        assert json.loads(file.read_text())["learner"]["obs_keys"] == expected_keys
    exported = load_policy(run / "final_model" / "policy.safetensors")
    assert exported.cfg.learner.obs_keys == tuple(expected_keys)

    # the exported policy, which depends on the chunk
    env = make_residual_env(exported.cfg, 2)
    env.residual_scale = exported.residual_scale
    policy = exported.actor(env.observation_space, env.action_dim, env.device)
    expected = actions_of(env, policy)
    obs = env.reset(seed=0)
    for name in ("base_chunk", "chunk_position"):
        assert not torch.equal(policy({**obs, name: obs[name] + 0.1}), policy(obs))

    # the run as a base policy, also behind a server
    point = fakes.PointEnv(fakes.PointCfg(8), 3)
    on_top = make_base_policy("model", ModelCfg(str(run / "final_model")), point)
    assert set(on_top.policy.inputs) == {"state", "position"}
    alone = ResidualEnv(point, on_top, 0.0)
    assert actions_of(alone, no_residual(alone)) == expected
    assert served(run / "final_model", SEEDS[0]) == expected[SEEDS[0]]

    # demonstrations, distillation, evaluation and the viewer
    collected = ["--policy", str(run), "--model", "final", "--n-episodes", "1", "--first-seed", str(SEEDS[0])]
    assert main(["demos", "collect", "point", *collected, "--output", str(tmp_path / "d.h5")]) == 0
    with Demonstrations.open(tmp_path / "d.h5") as demos:
        demo = demos.episode(0)
        assert demo.actions.tolist() == expected[SEEDS[0]]
        assert not {"base_chunk", "chunk_position"} & set(demo.obs)
    assert default_imitation("bc", exported.cfg).obs_keys == ("state", "position")
    compared = ["--model", "final", "--n-episodes", "3", "--compare-base", "--compare-zero"]
    assert main(["eval", str(run), *compared]) == 0
    shown = []
    monkeypatch.setattr(view, "require_display", lambda: None)
    monkeypatch.setattr(view, "_show", lambda env, policy, *_: shown.append(policy(env.reset(seed=0))))
    assert main(["view", "point", "--policy", str(run)]) == 0
    assert shown[0].shape == (1, 2)


def served(model: Path, seed: int) -> list[list[float]]:
    """The actions of an episode whose policy is behind a server."""
    env = fakes.PointEnv(fakes.PointCfg(8), 1)
    pool = fakes.PointEnv(fakes.PointCfg(8), 4)
    policy = make_base_policy("model", ModelCfg(str(model)), pool)
    service = PolicyService(policy, pool, "point", "it", "openpi", "normalized")
    service.take(2)
    env_ids = service.take(1)
    obs, _ = env.reset(seed=[seed])
    actions, ended = [], False
    while not ended:
        action: Tensor = service.predict(env_ids, {name: obs[name] for name in policy.policy.inputs}).actions
        actions.append(action[0, 0].tolist())
        obs, _, terminated, truncated, _ = env.step(action[:, 0])
        ended = bool(terminated | truncated)
    return actions


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["ppo", "sac"])
def test_obs_keys__default_ones_resume_bit_for_bit(learner: str, tmp_path: Path) -> None:
    """The first part ends after 12 steps of each env, within chunks of three steps."""
    whole = trained(tmp_path / "whole", learner)
    parts = trained(tmp_path / "parts", learner, steps=48)
    assert main(["train", "--resume", str(parts), "--total-timesteps", "96"]) == 0
    one, other = last_state(whole), last_state(parts)
    assert different([one["env"], one["learner"]], [other["env"], other["learner"]]) == []

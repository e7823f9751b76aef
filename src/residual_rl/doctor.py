"""The sanity suite of a task: checks that hold for any vec_env, and a table of them.

What only one task can know (its rates, geometry, figures of its rewards) is in the `doctor` that its registration names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.table import Table
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor
from residual_rl.build import make_base_policy
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import NonFiniteError
from residual_rl.registry import TaskSpec, load
from residual_rl.types import Obs

DOCTOR_SEED = 30_000_000
"""First episode seed of the checks: apart from those of training and of the evaluations."""
BATCH_SIZES = (1, 7, 32)
THREAD_COUNTS = (1, 2)
MIN_ORACLE_SUCCESS = 0.9
POSE_LIMITS = (("ee_position", 1e-3, "mm", 1e3), ("joint_position", 1e-2, "rad", 1.0))
"""What shows that a pose holds, by observation: the largest drift, a unit to print it in, and the factor to that unit."""

Act = Callable[[Obs, int], Tensor]
"""The actions [B, A] for an observation and the number of steps before it."""


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    expected: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Amounts:
    """How much is run."""

    oracle_episodes: int = 100
    zero_worlds: int = 8
    replay_steps: int = 100
    random_worlds: int = 25
    random_steps: int = 400


FULL = Amounts()
QUICK = Amounts(oracle_episodes=20, zero_worlds=2, replay_steps=40, random_steps=40)


@dataclass
class Rollout:
    """One episode in each of B worlds, T steps. Rows of a world count while `running`; images are left out."""

    seeds: list[int]
    start: Obs
    obs: Obs
    """[T, B, …]: the true observations after each step."""
    reward: Tensor
    """[T, B]"""
    terms: dict[str, Tensor]
    """Each [T, B]."""
    terminated: Tensor
    truncated: Tensor
    """[T, B] bool."""
    running: Tensor
    """[T, B] bool: whether the step belongs to the world's episode."""
    final: dict[str, Tensor]
    """The episodes' figures [B], of those that ended."""

    @property
    def ended(self) -> Tensor:
        """Whether the episode ended within the T steps [B] bool."""
        return (self.terminated | self.truncated).any(0)


def roll_out(env: VecEnv, act: Act, seeds: Sequence[int], num_steps: int | None = None) -> Rollout:
    """Run the episode of each of the B `seeds`, for `num_steps` or to the end of the last one; `act` gives the actions."""
    env.episode_seeds.use_list([])  # a world whose episode ended stands still
    obs, _ = env.reset(seed=list(seeds))
    start, running = obs, torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    steps: list[dict[str, Any]] = []
    final: dict[str, Tensor] = {}
    while running.any() and len(steps) < (num_steps or env.max_episode_steps + 1):
        obs, reward, terminated, truncated, info = env.step(act(obs, len(steps)))
        true_obs = {name: value for name, value in info["final_obs"].items() if value.is_floating_point()}
        row = {"obs": true_obs, "terms": info["reward_terms"], "reward": reward}
        steps.append({**row, "terminated": terminated, "truncated": truncated, "running": running})
        ended = info["_final_info"] & running
        for name, value in info["final_info"].items():
            final[name] = torch.where(ended, value, final.get(name, torch.zeros_like(value)))
        running = running & ~ended

    def stacked(name: str) -> Tensor:
        return torch.stack([step[name] for step in steps])

    def stacked_by_name(name: str) -> dict[str, Tensor]:
        return {key: torch.stack([step[name][key] for step in steps]) for key in steps[0][name]}

    named = {name: stacked_by_name(name) for name in ("obs", "terms")}
    flat = {name: stacked(name) for name in ("reward", "terminated", "truncated", "running")}
    return Rollout(list(seeds), start, final=final, **named, **flat)  # type: ignore[arg-type]


def examine(spec: TaskSpec, cfg: Any, quick: bool = False) -> Iterator[Check]:
    """All checks of a task under the settings `cfg`, one by one: first its own, then those that hold for any task."""
    if spec.doctor is not None:
        yield from load(spec.doctor)(cfg, quick)
    yield from generic_checks(spec, cfg, quick)


def generic_checks(spec: TaskSpec, cfg: Any, quick: bool = False) -> Iterator[Check]:
    """The checks that hold for any task."""
    amounts = QUICK if quick else FULL

    def make(num_envs: int, num_threads: int = 0) -> VecEnv:
        env: VecEnv = load(spec.make)(cfg, num_envs, num_threads, "cpu")
        return env

    yield from _guarded("zero action", lambda: check_zero_action(make(amounts.zero_worlds)))
    yield from _guarded("random actions", lambda: check_random_actions(make(amounts.random_worlds), amounts.random_steps // 10))
    yield from _guarded("seeds", lambda: check_seeds(make(100), varied=getattr(cfg, "randomization", "on") != "off"))
    if spec.oracle is None:
        yield Check("oracle", "a base policy that solves the task", "the task's registration names none", False)
        return
    oracle = spec.oracle
    yield from _guarded("oracle", lambda: check_oracle(make(amounts.oracle_episodes), oracle))
    yield from _guarded("determinism", lambda: check_determinism(make, oracle, amounts.replay_steps))


def _guarded(name: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """`checks()`, or a failed check that says what diverged."""
    try:
        yield from checks()
    except NonFiniteError as error:
        yield Check(name, "finite throughout", str(error), False)


# --- the checks -------------------------------------------------------------------------------------------------------


def check_zero_action(env: VecEnv) -> Iterator[Check]:
    """Zero actions hold the pose over whole episodes, which end by the limit."""
    zero = torch.zeros(env.num_envs, len(env.action_size), device=env.device)
    log = roll_out(env, lambda *_: zero, _seeds(env.num_envs))
    env.close()
    for name, limit, unit, factor in POSE_LIMITS:
        if name in log.obs:
            drift = (log.obs[name] - log.start[name]).norm(dim=2)[log.running].max().item()
            expected = f"{name} drifts less than {limit * factor:g} {unit} in {len(log.reward)} steps"
            yield Check("zero action holds the pose", expected, f"{drift * factor:.4f} {unit}", drift < limit)
            break
    cut, solved = log.truncated.any(0), log.final["success_at_end"]  # a start may lie within the goal
    lengths = log.final["episode_length"][~solved]
    ok = bool((cut == ~solved).all() and (log.terminated.any(0) == solved).all() and (lengths == env.max_episode_steps).all())
    measured = f"{int(cut.sum())} of {env.num_envs}, after {_span(lengths)}"
    yield Check("the limit truncates", f"episodes of doing nothing, after {env.max_episode_steps} steps", measured, ok)


def check_random_actions(env: VecEnv, num_steps: int) -> Iterator[Check]:
    """Random actions give finite observations within the declared space."""
    log = roll_out(env, lambda _, t: random_actions(env, DOCTOR_SEED + t), _seeds(env.num_envs), num_steps)
    outside = []
    for name, value in log.obs.items():
        space = env.single_observation_space[name]  # type: ignore[index]
        assert isinstance(space, spaces.Box)
        values = value[log.running].cpu().numpy()
        if not ((values >= space.low) & (values <= space.high)).all():
            outside.append(name)
    env.close()
    measured = f"outside: {', '.join(outside)}" if outside else f"within, {int(log.running.sum())} steps"
    yield Check("observations in their space", "finite and within the declared bounds under random actions", measured, not outside)


def check_seeds(env: VecEnv, varied: bool) -> Iterator[Check]:
    """The same seed starts the same episode, and another seed another. `varied` tells that the settings let episodes differ."""
    seeds = _seeds(env.num_envs)
    first, _ = env.reset(seed=seeds)
    env.step(random_actions(env, 0))
    again, _ = env.reset(seed=seeds[::-1])
    env.close()
    same = all(torch.equal(value, again[name].flip(0)) for name, value in first.items())
    yield Check("same seed, same start", "bit for bit, in another world and later", "identical" if same else "differs", same)
    starts = torch.cat([value.flatten(1).double() for value in first.values() if value.is_floating_point()], 1)
    distinct = len(torch.unique(starts, dim=0))
    expected = f"{env.num_envs} starts of {env.num_envs} seeds" if varied else "1 start: randomisation is off"
    yield Check("other seed, other start", expected, str(distinct), distinct == (env.num_envs if varied else 1))


def check_oracle(env: VecEnv, oracle: str) -> Iterator[Check]:
    """The oracle solves the task; on its way every term of the reward fires, and rewards add up."""
    log = roll_out(env, closed_loop(make_base_policy(oracle, None, env)), _seeds(env.num_envs))
    env.close()
    solved, n = int(log.final["success_at_end"].sum()), env.num_envs
    length = log.final["episode_length"].double().mean().item()
    yield Check(
        f"base policy {oracle!r} solves it",
        f">= {MIN_ORACLE_SUCCESS:.0%} of {n} episodes",
        f"{solved / n:.0%}, {length:.0f} steps on average",
        solved >= MIN_ORACLE_SUCCESS * n,
    )
    success = log.terminated.any(0)
    ok = bool((success == log.final["success_at_end"]).all() and (success == log.final["success_once"]).all() and log.ended.all())
    measured = f"{int(log.terminated.any(0).sum())} terminated, {int(log.truncated.any(0).sum())} truncated"
    yield Check("success ends the episode", "terminated where it succeeds, truncated elsewhere", measured, ok)
    for name, value in log.terms.items():
        values = value[log.running]
        fired = bool((values != 0).any())
        yield Check(f"reward term {name!r}", "fires", f"{values.min():.4g} to {values.max():.4g}", fired)
    wrong = (log.reward - torch.stack(list(log.terms.values())).sum(0)).abs().max().item()
    total = (log.reward * log.running).double().sum(0)
    drift = ((total - log.final["episode_return"]).abs() / total.abs().clamp(min=1.0)).max().item()
    measured = f"off by {wrong:.1e}, {drift:.1e}"
    yield Check("rewards add up", "reward = sum of its terms, return = sum of rewards", measured, max(wrong, drift) < 1e-4)


def check_determinism(make: Callable[[int, int], VecEnv], oracle: str, num_steps: int) -> Iterator[Check]:
    """Replayed actions give the same episodes for any number of worlds and threads, in any slot, and after other episodes."""
    reference_env = make(max(BATCH_SIZES), THREAD_COUNTS[0])
    seeds = _seeds(reference_env.num_envs)
    if not reference_env.deterministic:
        yield Check("determinism", "not promised by this sim_backend", "not checked", True)
        return
    act, actions = closed_loop(make_base_policy(oracle, None, reference_env)), []

    def noisy(obs: Obs, t: int) -> Tensor:
        actions.append(act(obs, t) + 0.3 * random_actions(reference_env, DOCTOR_SEED + t))
        return actions[-1]

    reference = roll_out(reference_env, noisy, seeds, num_steps)
    reference_env.close()
    played = torch.stack(actions)
    for num_threads in THREAD_COUNTS:
        for num_envs in BATCH_SIZES:
            env = make(num_envs, num_threads)
            # Backwards, so that an episode runs in another slot; with one world the first few do.
            order = list(range(len(seeds)))[::-1][: max(num_envs * (len(seeds) // num_envs), 1) if num_envs > 1 else 3]
            found, count = "", 0
            for at in range(0, len(order), num_envs):
                rows = order[at : at + num_envs]
                log = roll_out(env, replay(played[:, rows]), [seeds[i] for i in rows], len(played))
                found, count = found or _difference(reference, log, rows), count + len(rows)
            env.close()
            measured = found or f"identical: {count} episodes"
            yield Check(f"determinism, worlds {num_envs}, threads {num_threads}", f"{len(played)} steps bit for bit", measured, not found)


def _difference(reference: Rollout, log: Rollout, rows: list[int]) -> str:
    """Where the episodes of `log` first differ from the `rows` of `reference`; empty if nowhere."""
    for t in range(len(log.reward)):
        running = log.running[t]
        pairs = {name: (value[t], reference.obs[name][t]) for name, value in log.obs.items()}
        pairs |= {name: (getattr(log, name)[t], getattr(reference, name)[t]) for name in ("reward", "running", "terminated")}
        for name, (mine, theirs) in pairs.items():
            bad = (mine != theirs[rows]).flatten(1).any(1) if mine.dim() > 1 else mine != theirs[rows]
            bad = bad & (running | reference.running[t, rows])
            if bad.any():
                return f"{name} differs at step {t + 1} of seed {log.seeds[int(bad.nonzero()[0])]}"
    return ""


# --- parts ------------------------------------------------------------------------------------------------------------


def closed_loop(policy: BasePolicyExecutor) -> Act:
    """The base policy as an `act` of `roll_out`, for one episode a world."""

    def act(obs: Obs, t: int) -> Tensor:
        if t == 0:
            policy.reset(torch.ones(len(next(iter(obs.values()))), dtype=torch.bool))
        return policy.act(obs)

    return act


def replay(actions: Tensor) -> Act:
    """Recorded `actions` [T, B, A] as an `act` of `roll_out`."""
    return lambda _, t: actions[t]


def random_actions(env: VecEnv, seed: int) -> Tensor:
    """Actions [B, A], uniform in [-1, 1]."""
    shape = (env.num_envs, len(env.action_size))
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)).to(env.device)


def format_table(title: str, checks: Iterable[Check]) -> Table:
    """The checks as a table."""
    table = Table("", "check", "expected", "measured", title=title, title_justify="left")
    for check in checks:
        verdict = "[green]ok[/]" if check.ok else "[bold red]FAILED[/]"
        table.add_row(verdict, check.name, check.expected, check.measured, style=None if check.ok else "red")
    return table


def _seeds(n: int) -> list[int]:
    return list(range(DOCTOR_SEED, DOCTOR_SEED + n))


def _span(values: Tensor) -> str:
    if not len(values):
        return "none"
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"

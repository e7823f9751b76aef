"""The sanity suite of a task: checks that apply to any vec_env, and a table of their results.

Checks of a single task (its rates, geometry and reward values) are in the `doctor` function that its
registration names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from rich.table import Table
from rich.text import Text
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.envs.sanity_checks import (
    DOCTOR_SEED,
    Act,
    Check,
    Rollout,
    doctor_seeds,
    random_actions,
    roll_out,
)
from residual_rl.envs.spaces import observed
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.registry import TaskSpec, load
from residual_rl.types import Obs

THREAD_COUNTS = (1, 2)


@dataclass(frozen=True)
class Amounts:
    """Number of envs, episodes and steps of the checks."""

    oracle_episodes: int = 100
    zero_action_envs: int = 8
    replay_steps: int = 100
    random_action_envs: int = 25
    same_seed_envs: int = 32
    other_seed_envs: int = 100
    batch_sizes: tuple[int, ...] = (1, 7, 32)
    random_steps: int = 400

    def at_most(self, num_envs: int | None) -> Amounts:
        """The same with at most `num_envs` envs at a time."""
        if num_envs is None:
            return self
        counts = {name: getattr(self, name) for name in vars(self) if name.endswith(("_envs", "_episodes"))}
        return dataclasses.replace(
            self,
            **{name: min(count, num_envs) for name, count in counts.items()},
            batch_sizes=tuple(sorted({min(size, num_envs) for size in self.batch_sizes})),
        )


FULL = Amounts()
QUICK = Amounts(oracle_episodes=20, zero_action_envs=2, replay_steps=40, random_steps=40)


def examine(
    spec: TaskSpec, cfg: Any, quick: bool = False, report: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Run the checks of a task one by one: first its own, then those that apply to any task.

    Args:
        spec: registration of the task.
        cfg: settings of the task.
        quick: use fewer episodes and steps.
        report: called with the name of each group of checks before it runs.
    """
    if spec.doctor is not None:
        own = load(spec.doctor)
        report("the task's own checks")
        yield from _guarded("the task's own checks", lambda: own(cfg, quick, _make_policy))
    yield from generic_checks(spec, cfg, quick, report)


def generic_checks(
    spec: TaskSpec, cfg: Any, quick: bool = False, report: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Run the checks that apply to any task. The arguments are those of `examine`."""
    amounts = (QUICK if quick else FULL).at_most(spec.eval_limit(cfg))

    # the default settings of the same variant of the task
    same = {name: getattr(cfg, name) for name in (spec.variant, *spec.demo_settings) if name is not None}
    default = dataclasses.replace(spec.default_config(), **same)

    def make(num_envs: int, num_threads: int = 0, cfg: Any = cfg) -> VecEnv:
        env: VecEnv = load(spec.make)(cfg, num_envs, num_threads, "cpu")
        return env

    oracle, why = _find_oracle(spec.oracle, make)
    groups: dict[str, Callable[[], Iterable[Check]]] = {
        "properties": lambda: describe_env(make(1)),
        "zero action": lambda: check_zero_action(make(amounts.zero_action_envs)),
        "random actions": lambda: check_random_actions(
            make(amounts.random_action_envs), amounts.random_steps // 10
        ),
        "same seed": lambda: check_same_seed(make(amounts.same_seed_envs)),
        "other seed": lambda: check_other_seed(
            make(amounts.other_seed_envs), lambda: make(amounts.other_seed_envs, cfg=default)
        ),
        "oracle": lambda: (
            check_oracle(make(amounts.oracle_episodes), oracle, spec.oracle_success)
            if oracle is not None
            else [Check("oracle", "a base policy that solves the task", f"not checked: {why}", True)]
        ),
        "determinism": lambda: check_determinism(make, oracle, amounts),
    }
    for name, checks in groups.items():
        report(name)
        yield from _guarded(name, checks)


def _find_oracle(oracle: str | None, make: Callable[[int], VecEnv]) -> tuple[str | None, str]:
    """The task's oracle if it can act in its envs, and otherwise None and the reason."""
    if oracle is None:
        return None, "the task has no oracle"
    env = make(1)
    try:
        make_base_policy(oracle, None, env)
    except ConfigError as error:
        return None, str(error)
    finally:
        env.close()
    return oracle, ""


def _make_policy(base_policy_id: str, env: VecEnv) -> BasePolicyExecutor:
    return make_base_policy(base_policy_id, None, env)


def _guarded(name: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Run `checks()`, and turn a `NonFiniteError` into a failed check."""
    try:
        yield from checks()
    except NonFiniteError as error:
        yield Check(name, "finite throughout", str(error), False)


# --- checks ---


def describe_env(env: VecEnv) -> Iterator[Check]:
    """What the env offers, for a person to compare with its documentation."""
    shapes = {name: "x".join(map(str, space.shape or (1,))) for name, space in observed(env).items()}
    env.close()
    steps, hz = env.max_episode_steps, env.control_hz
    rows = {
        "observations": ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
        "actions": f"{len(env.action_unit)}; 1 means {_span(env.action_unit)} {env.action_unit_name}",
        "episodes": f"at most {steps} steps at {hz:g} Hz, {steps / hz:.3g} s",
    }
    for name, measured in rows.items():
        yield Check(name, "as documented", measured, True)


def check_zero_action(env: VecEnv) -> Iterator[Check]:
    """Episodes of zero actions are truncated at the step limit, unless they terminate before."""
    zero = torch.zeros(env.num_envs, len(env.action_unit), device=env.device)
    log = roll_out(env, lambda *_: zero, doctor_seeds(env.num_envs))
    env.close()
    # an episode may terminate: its first state is within the goal, or doing nothing fails
    cut, terminated = log.truncated.any(0), log.terminated.any(0)
    lengths = log.final["episode_length"]
    ok = bool(
        (cut == ~terminated).all()
        and (lengths[cut] == env.max_episode_steps).all()
        and (lengths <= env.max_episode_steps).all()
    )
    measured = f"{int(cut.sum())} of {env.num_envs}, after {_span(lengths[cut])}"
    if terminated.any():
        measured += f"; {int(terminated.sum())} terminated, after {_span(lengths[terminated])}"
    yield Check(
        "the limit truncates", f"episodes of zero actions, after {env.max_episode_steps} steps", measured, ok
    )


def check_random_actions(env: VecEnv, num_steps: int) -> Iterator[Check]:
    """Observations are finite and within the declared space under random actions."""
    log = roll_out(
        env, lambda _, t: random_actions(env, DOCTOR_SEED + t), doctor_seeds(env.num_envs), num_steps
    )
    # Compare with the bounds only while the episodes run.
    outside = []
    for name, value in log.obs.items():
        space = env.single_observation_space[name]  # type: ignore[index]
        assert isinstance(space, spaces.Box)
        values = value[log.running].cpu().numpy()
        if not ((values >= space.low) & (values <= space.high)).all():
            outside.append(name)
    env.close()
    measured = f"outside: {', '.join(outside)}" if outside else f"within, {int(log.running.sum())} steps"
    yield Check(
        "observations within their space",
        "finite and within the declared bounds under random actions",
        measured,
        not outside,
    )


def check_same_seed(env: VecEnv) -> Iterator[Check]:
    """Equal seeds give equal initial observations."""
    seeds = doctor_seeds(env.num_envs)
    first, _ = env.reset(seed=seeds)
    env.step(random_actions(env, 0))
    # The same seeds in reverse order, so in other envs.
    again, _ = env.reset(seed=seeds[::-1])
    env.close()
    same = all(torch.equal(value, again[name].flip(0)) for name, value in first.items())
    yield Check(
        "same seed, same start",
        "bit for bit, in another env and later",
        "identical" if same else "differs",
        same,
    )


def check_other_seed(env: VecEnv, make_default: Callable[[], VecEnv]) -> Iterator[Check]:
    """Different seeds give different initial observations.

    If the user's settings leave nothing random, those of an env with the default settings must differ.
    """
    num_envs = env.num_envs
    distinct = _distinct_starts(env)
    ok, measured = distinct == num_envs, str(distinct)
    if distinct == 1 < num_envs:
        by_default = _distinct_starts(make_default())
        ok, measured = by_default == num_envs, f"1, and {by_default} with the default settings"
    yield Check("other seed, other start", f"{num_envs} starts of {num_envs} seeds", measured, ok)


def _distinct_starts(env: VecEnv) -> int:
    """The number of different initial observations of the envs' first episodes."""
    first, _ = env.reset(seed=doctor_seeds(env.num_envs))
    env.close()
    starts = torch.cat(
        [value.flatten(1).double() for value in first.values() if value.is_floating_point()], 1
    )
    return len(torch.unique(starts, dim=0))


def check_oracle(env: VecEnv, oracle: str, least: float) -> Iterator[Check]:
    """The oracle solves the task in a share of at least `least` of the episodes, success ends episodes,
    reward terms become nonzero, and rewards add up."""
    log = roll_out(env, closed_loop(make_base_policy(oracle, None, env)), doctor_seeds(env.num_envs))
    env.close()

    # The oracle solves the task, and success terminates the episode, unless the env says otherwise. Failure
    # may terminate it too.
    solved, n = int(log.final["success_at_end"].sum()), env.num_envs
    length = log.final["episode_length"].double().mean().item()
    yield Check(
        f"base policy {oracle!r} solves it",
        f">= {least:.0%} of {n} episodes",
        f"{solved / n:.0%}, {length:.0f} steps on average",
        solved >= least * n,
    )
    terminated, success = log.terminated.any(0), log.final["success_once"]
    measured = f"{int(terminated.sum())} terminated, {int(log.truncated.any(0).sum())} truncated"
    if env.success_terminates:
        ok = (~success | (terminated & log.final["success_at_end"])).all() & log.ended.all()
        yield Check("success ends the episode", "terminated on success", measured, bool(ok))
    else:
        yield Check("episodes end", "terminated or truncated", measured, bool(log.ended.all()))

    # Every reward term becomes nonzero, and rewards and returns add up.
    for name, value in log.terms.items():
        values = value[log.running]
        fired = bool((values != 0).any())
        yield Check(f"reward term {name!r}", "nonzero", f"{values.min():.4g} to {values.max():.4g}", fired)
    wrong = (log.reward - torch.stack(list(log.terms.values())).sum(0)).abs().max().item()
    total = (log.reward * log.running).double().sum(0)
    drift = ((total - log.final["episode_return"]).abs() / total.abs().clamp(min=1.0)).max().item()
    measured = f"off by {wrong:.1e}, {drift:.1e}"
    yield Check(
        "rewards add up",
        "reward = sum of its terms, return = sum of rewards",
        measured,
        max(wrong, drift) < 1e-4,
    )


def check_determinism(
    make: Callable[[int, int], VecEnv], oracle: str | None, amounts: Amounts
) -> Iterator[Check]:
    """Replayed actions give equal episodes for any number of envs and threads.

    Episodes also run in other envs of the batch, and after other episodes. The actions are random, added to
    those of the oracle if there is one, because the oracle makes contact.
    """
    # Record a reference run.
    reference_env = make(max(amounts.batch_sizes), THREAD_COUNTS[0])
    seeds = doctor_seeds(reference_env.num_envs)
    if not reference_env.deterministic:
        yield Check("determinism", "not promised by this env", "not checked", True)
        return
    act = closed_loop(make_base_policy(oracle, None, reference_env)) if oracle is not None else None
    actions: list[Tensor] = []

    def noisy(obs: Obs, t: int) -> Tensor:
        noise = random_actions(reference_env, DOCTOR_SEED + t)
        actions.append(noise if act is None else act(obs, t) + 0.3 * noise)
        return actions[-1]

    reference = roll_out(reference_env, noisy, seeds, amounts.replay_steps)
    reference_env.close()

    # Replay it with other numbers of envs and threads.
    played = torch.stack(actions)
    for num_threads in THREAD_COUNTS:
        for num_envs in amounts.batch_sizes:
            env = make(num_envs, num_threads)
            # In reverse order, so that episodes run in other envs. With one env the first few suffice.
            num_episodes = num_envs * (len(seeds) // num_envs) if num_envs > 1 else min(3, len(seeds))
            order = list(reversed(range(len(seeds))))[:num_episodes]
            found, count = "", 0
            for at in range(0, len(order), num_envs):
                rows = order[at : at + num_envs]
                log = roll_out(env, replay(played[:, rows]), [seeds[i] for i in rows], len(played))
                found, count = found or _difference(reference, log, rows), count + len(rows)
            env.close()
            measured = found or f"identical: {count} episodes"
            yield Check(
                f"determinism, envs {num_envs}, threads {num_threads}",
                f"{len(played)} steps bit for bit",
                measured,
                not found,
            )


def _difference(reference: Rollout, log: Rollout, rows: list[int]) -> str:
    """Describe the first difference of `log` from the `rows` of `reference`; empty if there is none."""
    for t in range(len(log.reward)):
        running = log.running[t]
        pairs = {name: (value[t], reference.obs[name][t]) for name, value in log.obs.items()}
        pairs |= {
            name: (getattr(log, name)[t], getattr(reference, name)[t])
            for name in ("reward", "running", "terminated")
        }
        for name, (mine, theirs) in pairs.items():
            bad = (mine != theirs[rows]).flatten(1).any(1) if mine.dim() > 1 else mine != theirs[rows]
            bad = bad & (running | reference.running[t, rows])
            if bad.any():
                return f"{name} differs at step {t + 1} of seed {log.seeds[int(bad.nonzero()[0])]}"
    return ""


# --- actions and the table ---


def closed_loop(policy: BasePolicyExecutor) -> Act:
    """The base policy as an `act` function for `roll_out`, for one episode per env."""

    def act(obs: Obs, t: int) -> Tensor:
        if t == 0:
            policy.reset(torch.ones(len(next(iter(obs.values()))), dtype=torch.bool))
        return policy.act(obs)

    return act


def replay(actions: Tensor) -> Act:
    """Recorded `actions` [T, B, A] as an `act` function for `roll_out`."""
    return lambda _, t: actions[t]


def format_table(title: str, checks: Iterable[Check]) -> Table:
    """A table of the checks: result, name, expected and measured."""
    table = Table("", "check", "expected", "measured", title=title, title_justify="left")
    for check in checks:
        verdict = Text("ok", "green") if check.ok else Text("FAILED", "bold red")
        table.add_row(verdict, check.name, check.expected, check.measured, style=None if check.ok else "red")
    return table


def _span(values: Tensor) -> str:
    if not len(values):
        return "none"
    low, high = values.min().item(), values.max().item()
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"

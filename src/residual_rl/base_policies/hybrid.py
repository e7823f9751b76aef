"""Several base policies as one: a fixed blend, a switch between them, or an ensemble that knows how far its members disagree."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import math
import re
import shlex
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from residual_rl.base_policies.make import make_base_policy
from residual_rl.checks import check_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.trusted import with_trust
from residual_rl.types import BasePolicy, Obs, Plan, State

Switch = Callable[[Obs], Tensor]
"""Which policy acts: int64 [b], counted from 0, from the observations [b, …] alone."""
_SETTING = re.compile(r"(\d+)\.(\w[\w-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class HybridCfg:
    """Settings of the `hybrid` base policy."""

    policies: tuple[str, ...] = ()
    """Ids of the base policies, two or more; the same may come several times."""
    settings: tuple[str, ...] = ()
    """Settings of theirs that differ from their defaults, as NUMBER.NAME=VALUE, e.g. `0.drag-gain=0.3 1.checkpoint=il/`, counted from 0."""
    mode: Literal["blend", "switch", "ensemble"] = "blend"
    """blend: the weighted sum of their actions; switch: one of them at a time; ensemble: the mean, and how far they are apart."""
    weights: tuple[float, ...] = ()
    """Of a blend: one for each policy, together 1; none are equal weights."""
    switch: str = ""
    """Of a switch: your function as MODULE:FUNCTION; from the named observations, each [b, …], to the acting policy's number, int64 [b]."""
    switch_on: str = ""
    """Of a switch without a function: the observation by which the second of two policies takes over, until the episode ends, …"""
    switch_below: float | None = None
    """… once its Euclidean norm is below this."""
    trust_checkpoint: Annotated[bool, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Let the policies read checkpoints that can run code of whoever made them."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.policies:
            return  # the defaults, before any flag
        if len(self.policies) < 2:
            raise ConfigError(f"policies must be two or more, not {self.policies[0]!r} alone")
        self._check_weights()
        self._check_switch()
        self.members()

    def _check_weights(self) -> None:
        if self.weights and self.mode != "blend":
            raise ConfigError(f"weights are of mode blend; mode {self.mode} has none")
        if self.weights and len(self.weights) != len(self.policies):
            raise ConfigError(f"weights must be one for each of the {len(self.policies)} policies, not {len(self.weights)}")
        if self.weights and (min(self.weights) < 0.0 or abs(math.fsum(self.weights) - 1.0) > 1e-6):
            raise ConfigError(f"weights must be 0 or more and 1 together, not {self.weights}")

    def _check_switch(self) -> None:
        threshold = bool(self.switch_on) or self.switch_below is not None
        if self.mode != "switch":
            if self.switch or threshold:
                raise ConfigError(f"switch, switch_on and switch_below are of mode switch, not of {self.mode}")
            return
        if bool(self.switch) == threshold or bool(self.switch_on) != (self.switch_below is not None):
            raise ConfigError("mode switch needs either a function, switch, or a threshold, switch_on with switch_below")
        if threshold and len(self.policies) != 2:
            raise ConfigError(f"a threshold switches between two policies, not {len(self.policies)}: give a function, switch")
        if self.switch_below is not None and self.switch_below <= 0.0:
            raise ConfigError(f"switch_below must be above 0, as norms are, not {self.switch_below}")

    def members(self) -> list[Any]:
        """The settings of each policy, None where it has none. Several of one kind with a `seed` get seeds that follow each other."""
        given: list[dict[str, str]] = [{} for _ in self.policies]
        for text in self.settings:
            found = _SETTING.fullmatch(text)
            if found is None or int(found[1]) >= len(given):
                raise ConfigError(f"settings must be NUMBER.NAME=VALUE with a NUMBER from 0 to {len(given) - 1}, not {text!r}")
            name = found[2].replace("-", "_")
            if name in given[int(found[1])]:
                raise ConfigError(f"settings give {found[1]}.{name} twice")
            given[int(found[1])][name] = found[3]
        return [self._member(i, values) for i, values in enumerate(given)]

    def _member(self, index: int, given: Mapping[str, str]) -> Any:
        base_policy_id = self.policies[index]
        default = BASE_POLICIES.get(base_policy_id).default_config()
        hints = typing.get_type_hints(type(default)) if default is not None else {}
        values = {}
        for name, text in given.items():
            if name not in hints:
                raise UnknownNameError(f"setting of base policy {base_policy_id!r}", name, hints)
            if name == "trust_checkpoint":
                raise ConfigError(f"{index}.trust_checkpoint is no setting of one policy: give --trust-checkpoint for all")
            values[name] = _parse(hints[name], text, f"settings: {index}.{name}")
        if "seed" in hints and "seed" not in values:
            values["seed"] = default.seed + self.policies[:index].count(base_policy_id)
        return with_trust(dataclasses.replace(default, **values), self.trust_checkpoint) if default is not None else None

    def relocated(self, find: Callable[[str], str]) -> HybridCfg:
        """These settings with the policies' checkpoints where `find` says they are."""
        parts = [_SETTING.fullmatch(text) for text in self.settings]
        moved = (
            f"{p[1]}.{p[2]}={shlex.quote(find(''.join(shlex.split(p[3]))))}" if p and p[2] == "checkpoint" else text
            for p, text in zip(parts, self.settings, strict=True)
        )
        return dataclasses.replace(self, settings=tuple(moved))


def _parse(hint: Any, text: str, what: str) -> Any:
    """The value of type `hint` that `text` spells, as on the command line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(hint, args=shlex.split(text))
    except (SystemExit, ValueError):
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ConfigError(f"{what} must be a {kind}, not {text!r}") from None


class HybridPolicy(BasePolicy):
    """Every policy is asked for every observation, whether it acts or not: so its phases, history and chunks are those of the episode.

    Args:
        cfg: the settings.
        env: all of the policies must fit it.
    """

    def __init__(self, cfg: HybridCfg, env: VecEnv):
        if not cfg.policies:
            raise ConfigError("it needs two or more base policies: --base.policies ID ID …")
        self._cfg = cfg
        self._members = [
            make_base_policy(id, member, env, f"policy {i}, {id!r}")
            for i, (id, member) in enumerate(zip(cfg.policies, cfg.members(), strict=True))
        ]
        observed = {name: tuple(space.shape) for name, space in env.single_observation_space.spaces.items()}  # type: ignore[attr-defined]
        names = {name for member in self._members for name in member.policy.inputs}
        if cfg.switch:
            names = set(observed)  # what a function reads, it does not say
        if cfg.switch_on:
            if cfg.switch_on not in observed:
                raise UnknownNameError("observation to switch on", cfg.switch_on, observed)
            names.add(cfg.switch_on)
        self.inputs = {name: observed[name] for name in sorted(names)}  # type: ignore[misc]
        self.remote = any(member.policy.remote for member in self._members)
        self._function = _load_switch(cfg.switch) if cfg.switch else None
        self._switched = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        """[B]: where the second policy has taken over."""
        equal = (1.0 / len(self._members),) * len(self._members)
        self._weights = torch.tensor(cfg.weights or equal, dtype=torch.float64, device=env.device)

    def reset(self, mask: Tensor) -> None:
        self._switched = self._switched & ~mask
        for member in self._members:
            member.reset(mask)

    def plan(self, obs: Obs, worlds: Tensor) -> Tensor | Plan:
        actions = torch.stack([member.act_rows(obs, worlds) for member in self._members])  # [n, b, A]
        if self._cfg.mode == "switch":
            chosen = self._chosen(obs, worlds)
            return actions[chosen, torch.arange(len(worlds), device=actions.device)][:, None]
        if self._cfg.mode == "blend":
            return (self._weights[:, None, None] * actions).sum(0)[:, None]
        actions = actions.double()
        return Plan(actions.mean(0)[:, None], actions.std(0, correction=0).mean(-1)[:, None])

    def _chosen(self, obs: Obs, worlds: Tensor) -> Tensor:
        """The acting policy's number [b]."""
        if self._function is not None:
            return self._ask_function(self._function, obs, len(worlds))
        norm = obs[self._cfg.switch_on].flatten(1).double().norm(dim=1)
        switched = self._switched[worlds] | (norm < self._cfg.switch_below)
        self._switched = self._switched.index_copy(0, worlds, switched)
        return switched.long()

    def _ask_function(self, function: Switch, obs: Obs, num_rows: int) -> Tensor:
        try:
            chosen = function(obs)
        except Exception as error:
            raise BasePolicyError(f"{self._cfg.switch} failed: {type(error).__name__}: {error}") from error
        wanted = f"expected an int64 tensor of shape {(num_rows,)} from 0 to {len(self._members) - 1}"
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.int64 or tuple(chosen.shape) != (num_rows,):
            got = f"{chosen.dtype} {tuple(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
            raise BasePolicyError(f"{self._cfg.switch} gave {got}; {wanted}")
        if num_rows and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self._members):
            raise BasePolicyError(f"{self._cfg.switch} gave {sorted(set(chosen.tolist()))}; {wanted}")
        return chosen

    def state_dict(self) -> State:
        return {"switched": self._switched, "members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state: State) -> None:
        self._switched = state["switched"].to(self._switched.device)
        for member, saved in zip(self._members, state["members"], strict=True):
            member.load_state_dict(saved)


def _load_switch(reference: str) -> Switch:
    module, _, name = reference.partition(":")
    try:
        function: Switch = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"switch must be MODULE:FUNCTION that Python can import, not {reference!r}: {error}; "
            "for a module in this folder set PYTHONPATH=."
        ) from error
    if not callable(function):
        raise ConfigError(f"switch must name a function; {reference!r} is a {type(function).__name__}")
    return function


def make(cfg: HybridCfg, env: VecEnv) -> HybridPolicy:
    """The policies of `cfg` as one, for `env`."""
    return HybridPolicy(cfg, env)


register_base_policy(
    BasePolicySpec(
        id="hybrid",
        summary="several base policies as one: a blend, a switch between them, or an ensemble that tells its disagreement",
        make=f"{__name__}:make",
        config=f"{__name__}:HybridCfg",
    )
)

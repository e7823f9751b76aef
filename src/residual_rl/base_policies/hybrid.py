"""Several base policies as one: a fixed blend, a switch between them, or an ensemble that knows how far its members disagree."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import shlex
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.utils.trusted import with_trust
from residual_rl.utils.validation import check_fields

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
            raise ConfigError(
                f"weights must be one for each of the {len(self.policies)} policies, not {len(self.weights)}"
            )
        if self.weights and (min(self.weights) < 0.0 or abs(math.fsum(self.weights) - 1.0) > 1e-6):
            raise ConfigError(f"weights must be 0 or more and 1 together, not {self.weights}")

    def _check_switch(self) -> None:
        threshold = bool(self.switch_on) or self.switch_below is not None
        if self.mode != "switch":
            if self.switch or threshold:
                raise ConfigError(
                    f"switch, switch_on and switch_below are of mode switch, not of {self.mode}"
                )
            return
        if bool(self.switch) == threshold or bool(self.switch_on) != (self.switch_below is not None):
            raise ConfigError(
                "mode switch needs either a function, switch, or a threshold, switch_on with switch_below"
            )
        if threshold and len(self.policies) != 2:
            raise ConfigError(
                f"a threshold switches between two policies, not {len(self.policies)}: give a function, switch"
            )
        if self.switch_below is not None and self.switch_below <= 0.0:
            raise ConfigError(f"switch_below must be above 0, as norms are, not {self.switch_below}")

    def members(self) -> list[Any]:
        """The settings of each policy, None where it has none. Several of one kind with a `seed` get seeds that follow each other."""
        given: list[dict[str, str]] = [{} for _ in self.policies]
        for text in self.settings:
            found = _SETTING.fullmatch(text)
            if found is None or int(found[1]) >= len(given):
                raise ConfigError(
                    f"settings must be NUMBER.NAME=VALUE with a NUMBER from 0 to {len(given) - 1}, not {text!r}"
                )
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
                raise ConfigError(
                    f"{index}.trust_checkpoint is no setting of one policy: give --trust-checkpoint for all"
                )
            values[name] = _parse(hints[name], text, f"settings: {index}.{name}")
        if "seed" in hints and "seed" not in values:
            values["seed"] = default.seed + self.policies[:index].count(base_policy_id)
        return (
            with_trust(dataclasses.replace(default, **values), self.trust_checkpoint)
            if default is not None
            else None
        )

    def relocated(self, find: Callable[[str], str]) -> HybridCfg:
        """These settings with the policies' checkpoints where `find` says they are."""
        parts = [_SETTING.fullmatch(text) for text in self.settings]
        moved = (
            f"{p[1]}.{p[2]}={shlex.quote(find(''.join(shlex.split(p[3]))))}"
            if p and p[2] == "checkpoint"
            else text
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


register_base_policy(
    BasePolicySpec(
        id="hybrid",
        summary="several base policies as one: a blend, a switch between them, or an ensemble that tells its disagreement",
        make="residual_rl.base_policies.hybrid_policy:make",
        config=f"{__name__}:HybridCfg",
    )
)

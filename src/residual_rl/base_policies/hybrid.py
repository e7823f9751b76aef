"""The base policy `hybrid`: settings and registration."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from residual_rl.config import with_trust
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.utils.sensitive import CodeName, Trust
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveFloat, parse_value

_SETTING = re.compile(r"(\d+)\.(\w[\w-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class HybridCfg(CheckedCfg):
    """Settings of the `hybrid` base policy."""

    policies: tuple[str, ...] = ()
    """Ids of two or more base policies; an id may occur several times."""
    settings: tuple[str, ...] = ()
    """Settings of the policies that differ from the defaults, as NUMBER.NAME=VALUE with the policy's number
    from 0, e.g. `0.drag-gain=0.3 1.checkpoint=il/`."""
    mode: Literal["blend", "switch", "ensemble"] = "blend"
    """blend: weighted sum of the actions; switch: one policy at a time; ensemble: mean action, with the
    policies' disagreement as uncertainty."""
    weights: tuple[NonNegativeFloat, ...] = ()
    """`blend`: one weight per policy, with a sum of 1; default: equal weights."""
    switch: CodeName = ""
    """`switch`: your function MODULE:FUNCTION that maps the named observations [b, …] to the number of the
    acting policy, int64 [b]."""
    switch_on: str = ""
    """`switch` without a function: name of an observation. When its norm falls below `switch_below`, the
    second of two policies takes over until the episode ends."""
    switch_below: PositiveFloat | None = None
    """Threshold on the Euclidean norm of `switch_on`."""
    trust_checkpoint: Annotated[Trust, tyro.conf.arg(aliases=["--trust-checkpoint"])] = False
    """Allow the policies to read checkpoints that can run arbitrary code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policies:
            return  # the defaults, before any flag
        if len(self.policies) < 2:
            raise ConfigError(f"policies must be two or more ids, not only {self.policies[0]!r}")
        self._check_weights()
        self._check_switch()
        self.members()

    def _check_weights(self) -> None:
        if self.weights and self.mode != "blend":
            raise ConfigError(f"weights are only for mode blend, not {self.mode}")
        if self.weights and len(self.weights) != len(self.policies):
            raise ConfigError(
                f"weights must be one for each of the {len(self.policies)} policies, not {len(self.weights)}"
            )
        if self.weights and abs(math.fsum(self.weights) - 1.0) > 1e-6:
            raise ConfigError(f"weights must add up to 1, not {self.weights}")

    def _check_switch(self) -> None:
        threshold = bool(self.switch_on) or self.switch_below is not None
        if self.mode != "switch":
            if self.switch or threshold:
                raise ConfigError(
                    f"switch, switch_on and switch_below are only for mode switch, not {self.mode}"
                )
            return
        if bool(self.switch) == threshold or bool(self.switch_on) != (self.switch_below is not None):
            raise ConfigError(
                "mode switch needs either a function, switch, or a threshold, switch_on with switch_below"
            )
        if threshold and len(self.policies) != 2:
            raise ConfigError(
                f"a threshold switches between two policies, not {len(self.policies)}: use a function "
                "(switch)"
            )

    def members(self) -> list[Any]:
        """The settings of each policy; None for one without settings.

        Several policies with the same id and a `seed` get consecutive seeds.
        """
        given: list[dict[str, str]] = [{} for _ in self.policies]
        for text in self.settings:
            found = _SETTING.fullmatch(text)
            if found is None or int(found[1]) >= len(given):
                last = len(given) - 1
                raise ConfigError(
                    f"settings must be NUMBER.NAME=VALUE with a NUMBER from 0 to {last}, not {text!r}"
                )
            name = found[2].replace("-", "_")
            if name in given[int(found[1])]:
                raise ConfigError(f"settings contain {found[1]}.{name} twice")
            given[int(found[1])][name] = found[3]
        return [self._member(i, values) for i, values in enumerate(given)]

    def nested_settings(self) -> dict[str, Any]:
        """The settings of each policy, by the path of the texts that give them."""
        return {f"settings.{i}": member for i, member in enumerate(self.members())}

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
                    f"{index}.trust_checkpoint cannot be set for one policy: use --trust-checkpoint for all"
                )
            values[name] = _parse(hints[name], text, f"settings: {index}.{name}")
        if "seed" in hints and "seed" not in values:
            values["seed"] = default.seed + self.policies[:index].count(base_policy_id)
        if default is None:
            return None
        return with_trust(dataclasses.replace(default, **values), self.trust_checkpoint)

    def relocated(self, find: Callable[[str], str]) -> HybridCfg:
        """These settings with each policy's checkpoint path replaced by `find(path)`."""
        settings = []
        for text in self.settings:
            parts = _SETTING.fullmatch(text)
            if parts and parts[2] == "checkpoint":
                path = find("".join(shlex.split(parts[3])))
                text = f"{parts[1]}.checkpoint={shlex.quote(path)}"
            settings.append(text)
        return dataclasses.replace(self, settings=tuple(settings))


def _parse(hint: Any, text: str, what: str) -> Any:
    """`text` as a value of type `hint`; words are separated as in a shell."""
    try:
        return parse_value(hint, shlex.split(text))
    except ValueError:
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ConfigError(f"{what} must be a {kind}, not {text!r}") from None


register_base_policy(
    BasePolicySpec(
        id="hybrid",
        summary=(
            "several base policies as one: a blend, a switch between them, or an ensemble with uncertainty"
        ),
        make="residual_rl.base_policies.hybrid_policy:make",
        config=f"{__name__}:HybridCfg",
    )
)

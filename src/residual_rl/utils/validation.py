"""Settings that are checked on construction: types, choices and bounds from the annotations of a dataclass.

    @dataclass(frozen=True)
    class GripperCfg(CheckedCfg):
        force: PositiveFloat = 5.0
        mode: Literal["open", "close"] = "open"
        delay: Annotated[int, Interval(ge=0, le=3)] = 0

The command line shows the same bounds in `--help` (see `describe_bounds`), and settings read from JSON pass
the same checks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen

from residual_rl.errors import ConfigError

_LARGEST = sys.float_info.max
"""Whole numbers in JSON can be larger than any float."""
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0.0)]
NonNegativeFloat = Annotated[float, Ge(0.0)]
UnitInterval = Annotated[float, Interval(ge=0.0, le=1.0)]
"""From 0 to 1."""
Share = Annotated[float, Interval(gt=0.0, le=1.0)]
"""Above 0 and at most 1."""
Correlation = Annotated[float, Interval(ge=0.0, lt=1.0)]
"""At least 0 and below 1."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on one field that no bound of `annotated_types` expresses.

    Args:
        text: completes the sentence "NAME must be …".
        holds: whether a value satisfies the condition.
    """

    text: str
    holds: Callable[[Any], bool]


Distinct = Rule("one or more different values", lambda values: 0 < len(values) == len(set(values)))
Names = Annotated[tuple[str, ...], Distinct]
Range = Annotated[tuple[float, float], Rule("a range from low to high", lambda pair: pair[0] <= pair[1])]


PositiveRange = Annotated[Range, Rule("above 0", lambda pair: pair[0] > 0.0)]
NonNegativeRange = Annotated[Range, Rule("at least 0", lambda pair: pair[0] >= 0.0)]
TorchSeed = Annotated[int, Interval(ge=0, lt=1 << 31)]
EpisodeSeed = Annotated[int, Interval(ge=0, lt=1 << 62)]
"""First of several episode seeds, all of which fit into 64 bits."""
Port = Annotated[int, Interval(ge=1, le=65535)]
# Upper bounds keep a file from asking for terabytes or for millions of threads.
NumThreads = Annotated[int, Interval(ge=0, le=1024)]
NumEnvs = Annotated[int, Interval(ge=1, le=1 << 20)]
Pixels = Annotated[int, Interval(ge=1, le=1 << 14)]
BatchSize = Annotated[int, Interval(ge=1, le=1 << 20)]
StepCount = Annotated[int, Interval(ge=1, le=1 << 16)]
"""Steps that are stored or summed together."""
NumRows = Annotated[int, Interval(ge=1, le=1 << 24)]
ChunkLength = Annotated[int, Interval(ge=1, le=1 << 14)]
NumNetworks = Annotated[int, Interval(ge=1, le=256)]
LayerSize = Annotated[int, Interval(ge=1, le=1 << 13)]
LayerSizes = Annotated[tuple[LayerSize, ...], MaxLen(16)]


class CheckedCfg:
    """Base of dataclasses whose fields are checked on construction.

    Conditions on several fields belong in the `__post_init__` of the subclass.
    """

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(cfg: Any) -> None:
    """Raise `ConfigError` for the first field whose value has a wrong type, is no allowed choice, is not
    finite, or is out of bounds.

    Args:
        cfg: an instance of a dataclass.
    """
    for name, hint in _hints(cfg.__class__).items():
        value = getattr(cfg, name)
        required = _violation(hint, value)
        if required is not None:
            raise ConfigError(f"{name} must be {required}, not {value!r}")


def parse_value(hint: Any, words: Sequence[str]) -> Any:
    """A value of type `hint` from the words of a text, such as a flag's; bounds are left to `check_fields`.

    Raises:
        ValueError: the words are not a value of that type.
    """
    inner, _ = _split(hint)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    # a list: one value for each word
    if origin is tuple:
        types_ = [args[0]] * len(words) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(parse_value(each, [word]) for each, word in zip(types_, words, strict=True))
    # X | None: the first type that takes the words, None before text
    if _options(inner) != (inner,):
        for option in sorted(_options(inner), key=lambda option: option is not types.NoneType):
            with contextlib.suppress(ValueError):
                return parse_value(option, words)
        raise ValueError(f"expected {inner}")
    # one word
    (word,) = words
    if origin is Literal:
        return next(_matching(args, word))
    if inner in (bool, types.NoneType):
        return next(_matching((True, False) if inner is bool else (None,), word))
    if inner in (int, float, str, Path):
        return inner(word)
    raise ValueError(f"a value of type {inner} cannot be written as text")


def _matching(choices: Sequence[Any], word: str) -> Iterator[Any]:
    found = [choice for choice in choices if str(choice) == word]
    if not found:
        raise ValueError(f"expected one of {choices}")
    return iter(found)


def describe_bounds(hint: Any) -> str:
    """The bounds of an annotated type for `--help`, e.g. `at least 0 and below 1`, or `at least 1 each`;
    empty where there are none."""
    texts = [text for text, _ in _conditions(hint)]
    inner, _ = _split(hint)
    if typing.get_origin(inner) is tuple:
        elements = {describe_bounds(element) for element in typing.get_args(inner) if element is not Ellipsis}
        texts += [f"{text} each" for text in elements if text]
    elif _options(inner) != (inner,):
        texts += [describe_bounds(option) for option in _options(inner)]
    return " and ".join(text for text in texts if text)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """The annotations of a dataclass's fields, resolved."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _violation(hint: Any, value: Any) -> str | None:
    """The violated condition of `hint` in words, or None if `value` satisfies it."""
    inner, _ = _split(hint)
    required = _type_violation(inner, value)
    if required is not None:
        return required
    for text, holds in _conditions(hint):
        if not holds(value):
            return text
    return None


def _type_violation(hint: Any, value: Any) -> str | None:
    origin = typing.get_origin(hint)
    # choices
    if origin is Literal:
        choices = typing.get_args(hint)
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    # X | None
    if hint is types.NoneType:
        return None if value is None else "none"
    if origin in (typing.Union, types.UnionType):
        found = [_violation(option, value) for option in typing.get_args(hint)]
        return None if None in found else " or ".join(text for text in found if text and text != "none")
    # tuples
    if origin is tuple:
        return _tuple_violation(typing.get_args(hint), value)
    # scalars
    return _scalar_violation(hint, value)


def _tuple_violation(elements: Sequence[Any], value: Any) -> str | None:
    if not isinstance(value, tuple):
        return "a list of values"
    if len(elements) == 2 and elements[1] is Ellipsis:
        elements = [elements[0]] * len(value)
    if len(elements) != len(value):
        return f"{len(elements)} values"
    for element, item in zip(elements, value, strict=True):
        required = _violation(element, item)
        if required is not None:
            return f"{required} each"
    return None


def _scalar_violation(hint: Any, value: Any) -> str | None:
    is_bool = type(value) is bool
    if hint is bool:
        return None if is_bool else "true or false"
    if hint is int:
        if not isinstance(value, numbers.Integral) or is_bool:
            return "a whole number"
        return None if abs(int(value)) < 1 << 63 else "a whole number below 2^63"
    if hint is float:
        if not isinstance(value, numbers.Real) or is_bool:
            return "a number"
        return None if abs(typing.cast(float, value)) <= _LARGEST else "finite"
    if hint is str:
        return None if isinstance(value, str) else "text"
    if hint is Path:
        return None if isinstance(value, Path) else "a path"
    return None  # other types have no checks


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type inside `Annotated`, and its annotations."""
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        return inner, tuple(metadata)
    return hint, ()


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of other types the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _conditions(hint: Any) -> list[tuple[str, Callable[[Any], bool]]]:
    """Text and test of each condition of `hint`; the bounds of a number are one condition."""
    bounds: dict[type, Any] = {}
    others: list[tuple[str, Callable[[Any], bool]]] = []
    _, metadata = _split(hint)
    for item in metadata:
        for part in item if isinstance(item, GroupedMetadata) else (item,):
            if isinstance(part, Gt | Ge | Lt | Le):
                bounds[type(part)] = dataclasses.astuple(part)[0]
            elif isinstance(part, MinLen):
                others.append(_min_length(part.min_length))
            elif isinstance(part, MaxLen):
                others.append(_max_length(part.max_length))
            elif isinstance(part, Rule):
                others.append((part.text, part.holds))
    return ([(_bounds_text(bounds), lambda value: _within(bounds, value))] if bounds else []) + others


def _min_length(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of at least {least}", lambda value: len(value) >= least


def _max_length(most: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of at most {most}", lambda value: len(value) <= most


def _bounds_text(bounds: dict[type, Any]) -> str:
    limits = {kind: int(bound) if bound == int(bound) else bound for kind, bound in bounds.items()}
    if limits.keys() == {Ge, Le}:
        return f"from {limits[Ge]} to {limits[Le]}"
    words = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
    return " and ".join(f"{word} {limits[kind]}" for kind, word in words.items() if kind in limits)


def _within(bounds: dict[type, Any], value: Any) -> bool:
    tests: dict[type, Callable[[Any, Any], bool]] = {
        Gt: lambda v, b: v > b,
        Ge: lambda v, b: v >= b,
        Lt: lambda v, b: v < b,
        Le: lambda v, b: v <= b,
    }
    return all(tests[kind](value, bound) for kind, bound in bounds.items())

"""Checked settings: types, choices and bounds from annotations, with one style of message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval, Le, MinLen

from residual_rl.config import from_plain
from residual_rl.errors import ConfigError
from residual_rl.utils.validation import (
    CheckedCfg,
    Correlation,
    LayerSizes,
    Names,
    NonNegativeInt,
    Port,
    PositiveFloat,
    PositiveInt,
    PositiveRange,
    Share,
    describe_bounds,
    parse_value,
)


@dataclass(frozen=True)
class ArmCfg(CheckedCfg):
    count: PositiveInt = 1
    delay: NonNegativeInt = 0
    gain: PositiveFloat = 1.0
    share: Share = 1.0
    correlation: Correlation = 0.0
    scale: Annotated[float, Interval(ge=0.0, le=2.0)] = 1.0
    cost: Annotated[float, Le(-0.5)] = -1.0
    std: PositiveFloat | None = None
    mode: Literal["fast", "slow"] = "fast"
    name: str = ""
    flag: bool = False
    sizes: tuple[PositiveInt, ...] = (8, 8)
    pair: tuple[float, float] = (0.0, 1.0)
    span: PositiveRange = (0.8, 1.2)
    keys: Names = ("state",)
    words: Annotated[tuple[str, ...], MinLen(1)] = ("a",)
    port: Port = 80
    file: Path = Path()
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count must be at least 1, not 0"),
        ("count", 1.5, "count must be a whole number, not 1.5"),
        ("count", True, "count must be a whole number, not True"),
        ("count", "1", "count must be a whole number, not '1'"),
        ("delay", -1, "delay must be at least 0, not -1"),
        ("gain", 0.0, "gain must be above 0, not 0.0"),
        ("gain", math.nan, "gain must be finite, not nan"),
        ("gain", None, "gain must be a number, not None"),
        ("gain", "1.0", "gain must be a number, not '1.0'"),
        ("share", 1.1, "share must be above 0 and at most 1, not 1.1"),
        ("correlation", 1.0, "correlation must be at least 0 and below 1, not 1.0"),
        ("scale", 2.1, "scale must be from 0 to 2, not 2.1"),
        ("cost", 0.0, "cost must be at most -0.5, not 0.0"),
        ("std", 0.0, "std must be above 0, not 0.0"),
        ("std", "no", "std must be a number, not 'no'"),
        ("mode", "medium", "mode must be one of fast, slow, not 'medium'"),
        ("name", 3, "name must be text, not 3"),
        ("flag", 1, "flag must be true or false, not 1"),
        ("sizes", (8, 0), "sizes must be at least 1 each, not (8, 0)"),
        ("sizes", [8], "sizes must be a list of values, not [8]"),
        ("pair", (1.0,), "pair must be 2 values, not (1.0,)"),
        ("pair", (math.inf, 0.0), "pair must be finite each, not (inf, 0.0)"),
        ("span", (1.2, 0.8), "span must be a range from low to high, not (1.2, 0.8)"),
        ("span", (0.0, 0.8), "span must be above 0, not (0.0, 0.8)"),
        ("keys", (), "keys must be one or more different values, not ()"),
        ("keys", ("a", "a"), "keys must be one or more different values, not ('a', 'a')"),
        ("words", (), "words must be a list of at least 1, not ()"),
        ("port", 65536, "port must be from 1 to 65535, not 65536"),
        ("file", "x", "file must be a path, not 'x'"),
    ],
)
def test_check_fields__names_the_field_the_rule_and_the_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ArmCfg(**{name: value})
    assert str(caught.value) == message


def test_check_fields__accepts_what_the_annotations_allow() -> None:
    cfg = ArmCfg(count=3, gain=2, std=0.1, sizes=(), pair=(-1, 1), mode="slow", anything=object())
    assert (cfg.gain, cfg.std, cfg.sizes) == (2, 0.1, ())


def test_from_plain__checks_values_from_json() -> None:
    assert from_plain(ArmCfg, {"sizes": [4, 2], "std": None}).sizes == (4, 2)
    with pytest.raises(ConfigError, match=r"sizes must be at least 1 each, not \(4, 0\)"):
        from_plain(ArmCfg, {"sizes": [4, 0]})
    with pytest.raises(ConfigError, match="gain must be a number, not 'high'"):
        from_plain(ArmCfg, {"gain": "high"})


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (PositiveFloat, "above 0"),
        (Correlation, "at least 0 and below 1"),
        (PositiveInt | None, "at least 1"),
        (tuple[PositiveInt, ...], "at least 1 each"),
        (PositiveRange, "a range from low to high and above 0"),
        (Names | None, "one or more different values"),
        (float, ""),
        (Literal["a", "b"], ""),
        (tuple[float, float] | None, ""),
    ],
)
def test_describe_bounds__for_the_help(hint: Any, text: str) -> None:
    assert describe_bounds(hint) == text


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan])
def test_check_fields__floats_are_finite(value: float) -> None:
    @dataclass(frozen=True)
    class Cfg(CheckedCfg):
        size: float = 0.0

    with pytest.raises(ConfigError, match="size must be finite"):
        Cfg(value)


def test_check_fields__whole_numbers_fit_into_64_bits() -> None:
    @dataclass(frozen=True)
    class Cfg(CheckedCfg):
        count: int = 0

    assert Cfg(2**63 - 1).count == 2**63 - 1
    with pytest.raises(ConfigError, match="count must be a whole number below"):
        Cfg(2**63)


@pytest.mark.parametrize(
    ("hint", "words", "expected"),
    [
        (int, ["3"], 3),
        (PositiveFloat, ["0.5"], 0.5),
        (bool, ["False"], False),
        (str, ["--tyro-write-completion"], "--tyro-write-completion"),
        (int | None, ["None"], None),
        (int | None, ["4"], 4),
        (str | None, ["None"], None),
        (Literal["blend", "switch"], ["switch"], "switch"),
        (tuple[int, ...], ["1", "2"], (1, 2)),
        (tuple[int, ...], [], ()),
        (tuple[float, float], ["1", "2.5"], (1.0, 2.5)),
        (tuple[str, ...], ["a b", "--c"], ("a b", "--c")),
        (Path, ["a/b"], Path("a/b")),
    ],
)
def test_parse_value__reads_words_as_the_type(hint: Any, words: list[str], expected: Any) -> None:
    value = parse_value(hint, words)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, ["1.5"]),
        (int, ["1", "2"]),
        (float, []),
        (float, ["--tyro-write-completion", "bash", "FILE"]),
        (bool, ["yes"]),
        (Literal["blend", "switch"], ["Blend"]),
        (tuple[float, float], ["1"]),
        (int | None, ["x"]),
        (dict, ["{}"]),
    ],
)
def test_parse_value__other_words_are_a_value_error(hint: Any, words: list[str]) -> None:
    with pytest.raises(ValueError):
        parse_value(hint, words)


def test_check_fields__lists_have_a_largest_length() -> None:
    @dataclass(frozen=True)
    class Cfg(CheckedCfg):
        sizes: LayerSizes = (8, 8)

    with pytest.raises(ConfigError, match="sizes must be a list of at most 16"):
        Cfg((8,) * 17)
    with pytest.raises(ConfigError, match="sizes must be from 1 to 8192 each"):
        Cfg((1 << 17,))

"""Flags from several dataclasses: prefixes of equal names, bounds in the help."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import pytest
import tyro

from residual_rl.cli.flags import field_docs, parse_flags, parse_head, resume_folder
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import ConfigError
from residual_rl.utils.validation import CheckedCfg, NonNegativeFloat, PositiveInt


@dataclasses.dataclass(frozen=True)
class OurCfg(CheckedCfg):
    num_envs: Annotated[PositiveInt, tyro.conf.arg(aliases=["--n-envs"])] = 8
    """Envs stepped
    together."""
    path: str | None = None
    """A file."""


@dataclasses.dataclass(frozen=True)
class TheirCfg(CheckedCfg):
    num_envs: int = 3
    """Another number."""
    friction: NonNegativeFloat = 0.5
    """Friction."""


@dataclasses.dataclass(frozen=True)
class BaseCfg(CheckedCfg):
    friction: float = 0.1
    """Of the base."""


@dataclasses.dataclass(frozen=True)
class DerivedCfg(OurCfg):
    num_envs: PositiveInt = 16


GROUPS = {"run": OurCfg(), "task": TheirCfg(), "base": BaseCfg(), "none": None}


def test_parse_flags__gives_each_group_its_values() -> None:
    argv = ["--n-envs", "4", "--task.num-envs", "7", "--friction", "0.2", "--base.friction", "0.3"]
    parsed = parse_flags(GROUPS, argv, "test", "Test.")
    assert parsed == {"run": OurCfg(4), "task": TheirCfg(7, 0.2), "base": BaseCfg(0.3), "none": None}
    assert parse_flags(GROUPS, [], "test", "Test.") == {**GROUPS}


def test_parse_flags__raises_what_a_dataclass_refuses() -> None:
    for argv, message in (
        (["--num-envs", "0"], "num_envs must be at least 1, not 0"),
        (["--friction", "-1"], "friction must be at least 0, not -1.0"),
        (["--base.friction", "nan"], "friction must be finite, not nan"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_flags(GROUPS, argv, "test", "Test.")
        assert str(caught.value) == message


def test_parse_flags__help_shows_descriptions_bounds_and_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        parse_flags(GROUPS, ["--help"], "test TASK", "Test.")
    assert ended.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "usage: residual-rl test TASK" in text
    assert "--n-envs INT, --num-envs INT Envs stepped together. (at least 1, default: 8)" in text
    assert "--task.num-envs INT Another number. (default: 3)" in text
    assert "--friction FLOAT Friction. (at least 0, default: 0.5)" in text
    assert "--base.friction FLOAT Of the base. (default: 0.1)" in text


def test_parse_head__ignores_other_flags_and_help() -> None:
    argv = ["--other", "1", "--num_envs=5", "--path", "x", "--help"]
    assert parse_head(OurCfg(), argv, "test") == OurCfg(5, "x")


def test_field_docs__are_inherited_and_on_one_line() -> None:
    assert field_docs(DerivedCfg) == {"num_envs": "Envs stepped together.", "path": "A file."}


@pytest.mark.parametrize(
    ("argv", "folder"),
    [(["--resume", "r"], "r"), (["--a", "--resume=r"], "r"), (["--a"], None), (["--resume", "--help"], None)],
)
def test_resume_folder__is_the_value_of_the_flag(argv: list[str], folder: str | None) -> None:
    assert resume_folder(argv, "train") == folder


@pytest.mark.parametrize("argv", [["--resume"], ["--resume="], ["--resume", "--x"]])
def test_resume_folder__must_be_given(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="--resume needs a run folder: residual-rl train --resume RUN"):
        resume_folder(argv, "train")


def test_replace_fields__takes_the_first_part_or_the_named_one() -> None:
    cfg = dataclasses.replace(TrainCfg.default("so101-paper"), task=TheirCfg())
    assert replace_fields(cfg, {"num_envs": 5}).run.num_envs == 5
    assert replace_fields(cfg, {"num_envs": 5}).task == TheirCfg()
    assert replace_fields(cfg, {"task.num_envs": 5}).task == TheirCfg(5)

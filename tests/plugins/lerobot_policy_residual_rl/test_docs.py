"""The commands of LeRobot in the documentation: LeRobot's own parser takes them as typed."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_pages import split
from lerobot.configs import parser
from lerobot_case import make_checkpoint

import lerobot_policy_residual_rl  # noqa: F401 (registers what the commands name)

pytestmark = pytest.mark.lerobot

PAGES = ("docs/lerobot.md", "docs/lerobot_policies.md")
MAIN = {
    "lerobot-record": "record",
    "lerobot-train": "train",
    "lerobot-eval": "eval_main",
    "lerobot-rollout": "rollout",
}
COMMANDS = [
    line
    for page in PAGES
    for line in split(page)[1].replace("\\\n", " ").splitlines()
    if line.startswith("lerobot-") and "…" not in line
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("policy"), images={"top": (64, 64)})


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:40])
def test_commands__lerobot_takes_their_flags(
    line: str, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = shlex.split(line)
    try:
        module = importlib.import_module(f"lerobot.scripts.{program.replace('-', '_')}")
    except ModuleNotFoundError:
        pytest.skip(f"this LeRobot has no {program}")
    words = [f"--policy.path={policy}" if word.startswith("--policy.path=") else word for word in words]
    function = getattr(module, MAIN[program])
    config = next(iter(function.__wrapped__.__annotations__.values()))
    config = getattr(module, config) if isinstance(config, str) else config
    if program == "lerobot-record" and "policy" not in config.__dataclass_fields__:
        words = [word for word in words if not word.startswith("--policy.path=")]
        words.append("--teleop.type=so101_sim_policy")  # LeRobot 0.6 records without a policy

    def parsed(cfg: Any) -> Any:
        return cfg

    parsed.__annotations__ = {"cfg": config}
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert isinstance(parser.wrap()(parsed)(), config)


def test_commands__are_all_of_the_round_trip() -> None:
    assert {line.split()[0] for line in COMMANDS} == set(MAIN)

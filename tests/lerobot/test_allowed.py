"""A LeRobot checkpoint runs no code unless it is trusted: hostile checkpoints, opened by the real commands.

`transformers` is replaced by a module that does what it would do: run the code of the folder that is named.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from lerobot.processor import tokenizer_processor
from lerobot_case import make_checkpoint

from residual_rl.cli.main import main
from residual_rl.lerobot import allowed

pytestmark = pytest.mark.lerobot


@pytest.fixture
def hostile_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer whose code creates the file `ran`, and a library that runs it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")

    class Auto:
        @classmethod
        def from_pretrained(cls, name: str, **_: Any) -> Any:
            (tmp_path / "called").touch()
            exec(Path(name, "code.py").read_text())

    fake = types.ModuleType("transformers")
    fake.AutoProcessor = fake.AutoTokenizer = Auto  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setattr(tokenizer_processor, "_transformers_available", True)
    for name in ("AutoProcessor", "AutoTokenizer"):
        monkeypatch.setattr(tokenizer_processor, name, Auto, raising=False)
    return folder


def step(name: str, **options: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": options}


def add_step(file: str, made: Callable[[str], dict[str, Any]]) -> Callable[[Path, str], None]:
    def change(checkpoint: Path, code: str) -> None:
        processor = json.loads((checkpoint / file).read_text())
        processor["steps"].insert(0, made(code))
        (checkpoint / file).write_text(json.dumps(processor))

    return change


def set_type(kind: str) -> Callable[[Path, str], None]:
    def change(checkpoint: Path, _: str) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "type": kind}))

    return change


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
HOSTILE = {
    "action tokenizer": add_step(PRE, lambda c: step("action_tokenizer_processor", action_tokenizer_name=c)),
    "tokenizer": add_step(POST, lambda c: step("tokenizer_processor", tokenizer_name=c)),
    "class": add_step(PRE, lambda c: {"class": "pathlib.Path", "config": {}}),
    "unknown step": add_step(PRE, lambda c: step("reward_classifier_processor", pretrained_path=c)),
    "list as a name": add_step(PRE, lambda c: {"registry_name": ["device_processor"], "config": {}}),
    "option": add_step(PRE, lambda c: step("to_batch_processor", to_batch_action_processor=c)),
    "policy type": set_type("smolvla"),
    "unknown policy type": set_type("magic"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_load_model__runs_no_code_without_trust(
    kind: str, hostile_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: tiny_runs.Fails
) -> None:
    """Nothing is created before the refusal, which names the file and the flag."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    HOSTILE[kind](checkpoint, str(hostile_code))

    def created(*_: Any, **__: Any) -> None:
        (tmp_path / "created").touch()

    for name in ("configs.policies.PreTrainedConfig", "processor.DataProcessorPipeline"):
        monkeypatch.setattr(f"lerobot.{name}.from_pretrained", created)
    text = fails("eval", "so101-paper", "--base-policy", "lerobot", "--il-checkpoint", str(checkpoint))
    assert str(checkpoint) in text
    assert "reading it can run any code that its author put there" in text
    assert "--trust-checkpoint" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "tokenizer"]


def test_trust_checkpoint__lets_a_checkpoint_run_code(hostile_code: Path, tmp_path: Path) -> None:
    """The hostile step does run once it is trusted, so the test above would notice it."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    HOSTILE["action tokenizer"](checkpoint, str(hostile_code))
    command = ["eval", "so101-paper", "--base-policy", "lerobot", "--il-checkpoint", str(checkpoint)]
    main([*command, "--trust-checkpoint", "--n-episodes", "1", "--max-episode-steps", "2"])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_processor_steps__lerobot_writes_only_what_is_allowed(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, kind)
    for file in (PRE, POST):
        for written in json.loads((checkpoint / file).read_text())["steps"]:
            allowed.check_step(checkpoint / file, written, trusted=False)
    settings = checkpoint / "config.json"
    written_kind = json.loads(settings.read_text())["type"]
    assert allowed.check_policy_type(settings, written_kind, trusted=False) == kind

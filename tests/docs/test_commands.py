"""Every command in the documentation is accepted by the program, the Makefile or the benchmark that it names.

`residual-rl` lines go through the real command line until their flags are parsed. Nothing is run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from doc_pages import Command, commands
from paths import ROOT

import learned_bases
import transfer
from residual_rl.cli.main import COMMANDS, main

PLACEHOLDERS = {
    "TASK": "so101-paper",
    "RUN": "runs/x",
    "NAME": "jacobian",
    "FOLDER": "runs/new",
    "DIR": "views",
    "my-task": "so101-paper",
    "my-policy": "jacobian",
    "my-learner": "ppo",
}
"""Placeholders in sentences and tables, and the values that the tests put there."""
MODELS = ("runs/flow-20", "runs/peg-public")
"""Folders of imitation models, which are read before the flags are parsed."""
RUNS = ("runs/x", "runs/first", "runs/on-flow", "runs/so101", "runs/results/so101-paper-sac-1")
"""Folders of trained runs, which are read as well."""
FILES = ("demos.h5", "peg.h5")
ELSEWHERE = {"pytest", "venv", "mani_skill.utils.download_asset"}
"""Modules of other packages that `python -m` runs."""
OTHER_PACKAGES = {"gymnasium-robotics", "feetech-servo-sdk"}
"""Packages that users install in environments of their own: of envs, and of motors."""
ALL = list(dict.fromkeys(commands()))
LEARNED_BASES = [ROOT / "benchmarks" / name for name in ("learned_bases.json", "other_environments.json")]
TRANSFER = ROOT / "benchmarks" / "transfer.json"
VARIANTS = sorted(set((ROOT / "benchmarks").glob("*.json")) - {*LEARNED_BASES, TRANSFER})


class Parsed(BaseException):
    """Raised after the flags are parsed, to skip the rest. Not an `Exception`, so no handler catches it."""


def of(*programs: str) -> list[Any]:
    """The commands of some programs, as parameters of a test."""
    return [pytest.param(c, id=f"{c.page}: {c.text[:70]}") for c in ALL if c.program in programs]


def program_words(command: Command) -> list[str]:
    """The arguments of a command, with values for placeholders and without ellipses."""
    return [PLACEHOLDERS.get(word, word) for word in command.words[1:] if word not in ("…", "[options]")]


@pytest.fixture
def parse(
    documented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], None]:
    """Parses arguments of `residual-rl`, in a folder with the runs and files that the pages mention."""
    variants = [word for c in ALL for word in c.words if word.startswith("runs/variants/")]
    for name in {*RUNS, *MODELS, *variants}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(documented / ("model" if name in MODELS else "run"))
    for name in FILES:
        for suffix in ("h5", "json"):
            (tmp_path / name).with_suffix(f".{suffix}").symlink_to(documented / f"demos.{suffix}")
    monkeypatch.chdir(tmp_path)
    real = tyro.cli

    def cli(*args: Any, **options: Any) -> Any:
        value = real(*args, **options)
        if str(options.get("prog", "")).startswith("residual-rl") and not options.get("return_unknown_args"):
            raise Parsed
        return value

    monkeypatch.setattr(tyro, "cli", cli)

    def run(argv: list[str]) -> None:
        try:
            code = main(argv)
        except Parsed:
            return
        except SystemExit as exit:
            code = int(exit.code or 0)
        stderr = capsys.readouterr().err
        if "LeRobot, which" in stderr and importlib.util.find_spec("lerobot") is None:
            pytest.skip("needs LeRobot")
        assert code == 0, f"residual-rl {shlex.join(argv)}\n{stderr}"

    return run


def test_commands__are_found() -> None:
    texts = {(c.page, c.text) for c in ALL}
    assert (
        "README.md",
        "residual-rl train --resume runs/x                            # after Ctrl-C or a crash",
    ) in texts
    assert ("docs/imitation.md", "residual-rl demos info demos.h5") in texts
    assert ("README.md", "residual-rl list") in texts
    joined = next(c for c in ALL if c.page == "docs/off_policy.md" and "--learner td3" in c.text)
    assert joined.words[-2:] == ["--total-timesteps", "60000"]
    assert len(ALL) > 100


@pytest.mark.parametrize("command", of("residual-rl"))
def test_commands__residual_rl_takes_them(command: Command, parse: Callable[[list[str]], None]) -> None:
    words = program_words(command)
    if command.inline and len(words) <= (2 if words and words[0] == "demos" else 1):  # the name of a command
        assert not words or words[0] in COMMANDS or words == ["--help"], command
    else:
        parse(words)


def test_commands__all_commands_take_output_dir() -> None:
    for argv in (["imitate", "demos.h5"], ["convert", "x.pt"], ["demos", "to-lerobot", "demos.h5"]):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main([*argv, "--help"])
        assert "--output-dir" in out.getvalue(), argv


@pytest.mark.parametrize(
    "argv",
    [["train", "so101-paper", "--no-such-flag", "1"], ["eval", "runs/x", "--n-episode", "3"], ["trian"]],
)
def test_commands__wrong_ones_are_found(argv: list[str], parse: Callable[[list[str]], None]) -> None:
    with pytest.raises(AssertionError):
        parse(argv)


@pytest.mark.parametrize("command", of("make"))
def test_commands__make_has_the_target(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} [?:]?=" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


@pytest.mark.parametrize("command", of("pip"))
def test_commands__pip_installs_an_extra_that_exists(command: Command) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = [word for word in command.words[2:] if not word.startswith("-")]
    assert packages or command.inline
    for package in set(packages) - OTHER_PACKAGES:
        if (ROOT / package / "pyproject.toml").is_file():
            continue
        found = re.fullmatch(r"residual-rl\[(\w+)\]", package)
        assert found is not None
        assert found[1] in extras, package


@pytest.mark.parametrize("command", of("python"))
def test_commands__python_scripts_take_their_flags(
    command: Command, parse: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = program_words(command)
    if words[0] == "-m":
        assert words[1] in ELSEWHERE
        return
    if "…" in command.words:
        return  # the rest of another command follows
    script = ROOT / words[0]
    assert script.is_file()
    own, train = (
        (words[1 : words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words[1:], [])
    )
    for word in own:
        if word.startswith("benchmarks/"):
            assert (ROOT / word).is_file(), word
    if train:
        parse(["train", *train])
    elif script.parent.name == "benchmarks":
        parse_script(script, own, monkeypatch)


def parse_script(script: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a benchmark and let it parse its flags."""
    real = argparse.ArgumentParser.parse_args

    def parse_args(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [str(script), *argv])
    monkeypatch.syspath_prepend(str(script.parent))
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises((Parsed, SystemExit)) as ended:  # --help ends it too
        module.main()
    assert isinstance(ended.value, Parsed) or ended.value.code in (0, None), (
        f"{script.name} {shlex.join(argv)}"
    )


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_commands__variants_of_benchmarks_take_their_flags(
    path: Path, parse: Callable[[list[str]], None]
) -> None:
    content = json.loads(path.read_text())
    assert content["variants"]
    for flags in content["variants"].values():
        parse(["train", *content["train"], *flags])
    for file, argv in content.get("files", {}).items():
        parse([*argv, "--out", file])


@pytest.mark.slow
@pytest.mark.parametrize("path", LEARNED_BASES, ids=lambda path: path.stem)
def test_commands__learned_bases_take_their_flags(
    path: Path, documented: Path, parse: Callable[[list[str]], None]
) -> None:
    # of the rows that are only summarised, the first
    spec, runs = learned_bases.read_spec(path), Path("runs/bench")
    alike = [row for row, of in spec["rows"].items() if of.get("group") in spec.get("summarized", ())]
    for row in alike[1:]:
        del spec["bases"][spec["rows"].pop(row)["base"]]
    # the bases, and how they are made, other than LeRobot policies where it is missing
    has_lerobot = importlib.util.find_spec("lerobot") is not None
    (runs / "bases").mkdir(parents=True)
    for name, base in spec["bases"].items():
        is_run = "train" in base
        (runs / "bases" / name).symlink_to(documented / ("run" if is_run else "model"))
        if is_run:
            parse(["train", *learned_bases.base_arguments(spec, name), "--seed", "1"])
            continue
        parse([*learned_bases.collect_arguments(spec, base["demos"]), "--out", "new.h5"])
        if has_lerobot or base.get("policy") != "lerobot":
            parse(["imitate", "demos.h5", *base["imitate"], "--out", f"runs/{name}"])
    # the runs with their first seed
    for cell in [cell for part in learned_bases.PARTS for cell in learned_bases.cells(spec, part)]:
        base = spec["bases"].get(spec["rows"][cell.row].get("base"), {})
        first = spec["rows"][cell.row]["seeds"][0]
        if cell.seed == first and (has_lerobot or base.get("policy") != "lerobot"):
            parse(["train", *learned_bases.train_arguments(spec, cell, runs)])


@pytest.mark.slow
def test_commands__rows_and_settings_of_transfer_take_their_flags(
    parse: Callable[[list[str]], None],
) -> None:
    spec = json.loads(TRANSFER.read_text())
    for row in transfer.flags_by_row(spec):
        parse(["train", *transfer.train_arguments(spec, row)])
    for setting in spec["settings"]:
        parse(transfer.eval_arguments(spec, setting, "runs/x", 200))
        parse(
            [*transfer.eval_arguments(spec, setting, spec["task"][0], 200), "--base-policy", "jacobian-yaw"]
        )


def test_commands__other_programs_are_known() -> None:
    others = {
        c.text.split("#")[0].strip() for c in ALL if c.program not in ("residual-rl", "make", "pip", "python")
    }
    assert {text.split()[0] for text in others} <= {"source", "tensorboard", "ray"}
    assert {text for text in others if text.startswith("source")} == {"source .venv/bin/activate"}

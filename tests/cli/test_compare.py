"""`residual-rl compare`: arguments, the files that it writes, and its messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_files import lerobots, ours, write
from tiny_runs import Fails

from residual_rl.cli.main import main
from residual_rl.utils.files import parse_json


def test_compare__prints_a_table_and_writes_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run" / "eval.json", ours({"residual": [1, 1, 0], "base": [0, 1, 0]})).parent
    write(tmp_path / "lerobot" / "eval_info.json", lerobots({("so101_paper", 0): [1, 0, 0]}))
    output = tmp_path / "new" / "comparison.json"
    command = [
        "compare",
        str(run),
        str(tmp_path / "lerobot"),
        "--lerobot-seed",
        "1000",
        "--output",
        str(output),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "warning: the env settings of B are unknown" in printed
    assert "solved by both 1, only by A 1, only by B 0, by neither 1" in printed
    assert "Episodes to detect a difference of 5 points in success with a power of 80 %: " in printed
    assert parse_json(output.read_text())["A"] == f"{run} (residual)"
    assert output.with_suffix(".png").read_bytes()[1:4] == b"PNG"


def test_compare__chooses_the_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write(tmp_path / "eval.json", ours({"residual": [1, 1], "base": [0, 1]})).parent)
    assert main(["compare", run, run, "--policies", "None", "base"]) == 0
    printed = capsys.readouterr().out
    assert f"A: {run} (residual)\nB: {run} (base)" in printed
    assert "only by A 1" in printed


def test_compare__one_evaluation_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["a"], ["a", "--output", "c.json"]):
        assert main(["compare", *argv]) == 2
        assert "residual-rl compare A B" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "a", "b", "--help"])
    assert stopped.value.code == 0
    assert "--lerobot-seed" in capsys.readouterr().out


def test_compare__unpaired_seeds_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a.json", ours({"residual": [1, 1]}))
    other = write(tmp_path / "b.json", ours({"residual": [1, 1, 0]}))
    assert main(["compare", str(one), str(other), "--output", str(tmp_path / "c.json")]) == 2
    assert "cannot be paired, because their seeds differ" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def hostile(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = ours({"residual": [1, 0, 1]})
    change(content)
    return write(tmp_path / "hostile.json", content)


def test_compare__escape_sequences_of_a_foreign_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(content: dict[str, Any]) -> None:
        metrics = content["policies"]["residual"]
        metrics["\x1b[2Jred"] = metrics.pop("return")
        content |= {"task": "\x1b[2J", "units": {"\x1b[2Jred": "\x1b]0;title\x07"}}

    file = hostile(tmp_path, change)
    assert main(["compare", str(file), str(file)]) == 0
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


def test_compare__a_seed_of_thousands_of_digits_is_an_error(tmp_path: Path, fails: Fails) -> None:
    file = hostile(
        tmp_path, lambda c: c["policies"]["residual"]["return"]["per_episode"].update({"9" * 5000: 1.0})
    )
    assert "policies.residual.return is missing or of a wrong type" in fails("compare", file, file)
    file = hostile(tmp_path, lambda c: c.update(episode_seeds=[10**4000]))
    assert "episode_seeds is missing or of a wrong type" in fails("compare", file, file)


def test_compare__a_warning_of_100_000_settings_is_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"task": {f"setting_{i}": i for i in range(100_000)}}
    file = hostile(tmp_path, lambda c: c.update(settings=settings))
    other = write(tmp_path / "other.json", ours({"residual": [1, 0, 1]}))
    assert main(["compare", str(file), str(other)]) == 0
    out = capsys.readouterr().out
    assert "and 99,981 more" in out
    assert len(out) < 10_000


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_compare__a_file_that_never_ends_is_an_error(kind: str, tmp_path: Path, fails: Fails) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "eval.json")
    else:
        (tmp_path / "eval.json").symlink_to("/dev/zero")
    assert "it is not a regular file" in fails("compare", tmp_path, tmp_path)

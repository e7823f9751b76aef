"""`residual-rl compare`: arguments, the files that it writes, and its messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_files import lerobots, ours, write

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

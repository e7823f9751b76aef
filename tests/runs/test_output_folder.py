from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_runs import FAILING_TINY

from residual_rl.cli.main import main
from residual_rl.errors import ConfigError
from residual_rl.runs import run_folder
from residual_rl.runs.run_folder import output_folder


@pytest.fixture(autouse=True)
def _same_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-120000")


def test_output_folder__starts_in_the_same_second_get_different_folders(tmp_path: Path) -> None:
    def start(_: int) -> str:
        with output_folder(None, tmp_path / "runs", "task") as path:
            (path / "config.json").touch()
            return path.name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(start, range(8)))
    assert names == ["task-20260101-120000", *(f"task-20260101-120000-{i}" for i in range(2, 9))]


def test_output_folder__a_failure_before_the_first_file_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with output_folder(None, tmp_path / "runs", "task") as path:
            assert path.is_dir()
            raise ConfigError("wrong setting")

    with pytest.raises(ConfigError, match="wrong setting"):
        fail()
    assert not (tmp_path / "runs").exists()


def test_output_folder__a_given_folder_is_left_alone(tmp_path: Path) -> None:
    with output_folder(tmp_path / "given", tmp_path / "runs", "task") as path:
        assert path == tmp_path / "given"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train__a_second_start_in_the_same_second_has_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "so101-paper", *FAILING_TINY, "--total-timesteps", "32"]) == 0
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["so101-paper-20260101-120000", "so101-paper-20260101-120000-2"]

"""Models and evaluations as artifacts of Weights & Biases, and artifacts as models.

Most tests replace W&B by a stand-in. The last one uses W&B itself, offline, where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import FAILING_TINY, Fails

from residual_rl.base_policies.model import ModelCfg
from residual_rl.cli.flags import parse_flags
from residual_rl.cli.main import main
from residual_rl.errors import ConfigError
from residual_rl.runs.run_folder import RunFolder
from residual_rl.runs.wandb_artifacts import log_models
from residual_rl.utils.artifacts import fetch_artifact


class FakeArtifact:
    def __init__(self, name: str, type: str, metadata: dict[str, Any]):
        self.name, self.type, self.metadata = name, type, metadata
        self.files: set[str] = set()

    def add_file(self, path: str, name: str) -> None:
        assert Path(path).is_file()
        self.files.add(name)

    def add_dir(self, path: str, name: str) -> None:
        self.files |= {f"{name}/{file.name}" for file in Path(path).iterdir()}


class FakeWandb(SimpleNamespace):
    """Notes what is logged, and downloads from a folder."""

    def __init__(self, store: Path | None = None):
        super().__init__(Artifact=FakeArtifact, logged=[], inits=[], asked=[])
        self.store = store
        self.Api = lambda: self
        self.Settings = lambda project: None
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline"))

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return SimpleNamespace(
            id="the-id",
            log=lambda *a, **b: None,
            log_artifact=self.logged.append,
            finish=lambda *a, **b: None,
        )

    def artifact(self, name: str) -> Any:
        self.asked.append(name)
        if self.store is None:
            raise RuntimeError("artifact not found\nin two lines")

        def download(root: str) -> str:
            assert self.store is not None
            shutil.copytree(self.store, root, dirs_exist_ok=True)
            return root

        return SimpleNamespace(qualified_name=f"{name}-v3", download=download)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


@pytest.mark.slow
def test_train__logs_models_and_evaluations_when_it_has_finished(wandb: FakeWandb, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    flags = [*FAILING_TINY, "--total-timesteps", "32", "--output-dir", str(run)]
    assert main(["train", "so101-paper", *flags, "--wandb-project", "p", "--wandb-artifacts"]) == 0
    model, evaluation = wandb.logged
    assert (model.name, model.type) == ("my-run-model", "model")
    assert {"config.json", "best_model/policy.safetensors", "final_model/policy.safetensors"} <= model.files
    assert model.metadata["steps"] == 32
    assert evaluation.type == "evaluation"
    assert {"metrics.jsonl", "eval_results/step_000000032.json"} <= evaluation.files
    assert wandb.inits[-1] | {"dir": ""} == {"project": "p", "dir": "", "id": "the-id", "resume": "allow"}
    # the evaluation afterwards, in the same W&B run
    assert main(["eval", str(run), "--n-episodes", "1", "--wandb-artifacts"]) == 0
    assert wandb.logged[-1].type == "evaluation"
    assert wandb.logged[-1].files == {"eval.json", "report.html"}


def test_refuse_links__those_of_wandb_in_its_own_folder_are_allowed(run: Path) -> None:
    folder = run / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to(folder)
    (folder / "debug-core.log").symlink_to(run.parent / "elsewhere.log")
    RunFolder(run).refuse_links()
    (run / "eval_results" / "latest").symlink_to(folder)
    with pytest.raises(ConfigError, match="latest is a link"):
        RunFolder(run).refuse_links()


def test_run_cfg__artifacts_need_a_project(fails: Fails, run: Path) -> None:
    assert "wandb_artifacts needs a project" in fails("train", "so101-paper", "--wandb-artifacts")
    message = fails("eval", run, "--n-episodes", "1", "--wandb-artifacts")
    assert message.startswith("--wandb-artifacts needs a run with a W&B run")
    assert "--wandb-artifacts needs a run folder" in fails("eval", "so101-paper", "--wandb-artifacts")


def test_log_models__failure_is_a_warning(
    wandb: FakeWandb, run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "wandb.json").write_text('{"id": "a"}')

    def broken(**_: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    with caplog.at_level(logging.WARNING):
        log_models(RunFolder(run), "p")
    assert f"no W&B artifact of {run} was logged (RuntimeError: no network)" in caplog.text


# --- an artifact as a model ---------------------------------------------------------------------------------


def parse(default: ModelCfg, *argv: str) -> ModelCfg:
    cfg: ModelCfg = parse_flags({"base": default}, argv, "eval x", "")["base"]
    return cfg


def test_model_path__typed_artifact_is_downloaded(wandb: FakeWandb, run: Path, tmp_path: Path) -> None:
    wandb.store = run
    cfg = parse(ModelCfg(), "--model-path", "wandb:me/p/x-model:best")
    assert wandb.asked == ["me/p/x-model:best"]
    folder = Path(cfg.checkpoint)
    assert folder.is_relative_to(tmp_path / "cache" / "residual_rl" / "artifacts")
    assert (folder / "best_model" / "policy.safetensors").is_file()
    # it is used like a run folder
    flags = ["--max-episode-steps", "20", "--n-episodes", "1"]
    assert main(["eval", "so101-paper", "--base-policy", "model", "--model-path", str(folder), *flags]) == 0


def test_model_path__artifact_in_a_file_is_not_downloaded(wandb: FakeWandb, fails: Fails) -> None:
    stored = ModelCfg(checkpoint="wandb:stranger/p/x:v0")
    assert parse(stored, "--base.num-action-steps", "1").checkpoint == "wandb:stranger/p/x:v0"
    assert wandb.asked == []
    # a typed one replaces it
    with pytest.raises(ConfigError):
        parse(stored, "--model-path", "wandb:me/p/y:v1")
    assert wandb.asked == ["me/p/y:v1"]


def test_fetch_artifact__only_file_is_the_model(wandb: FakeWandb, tmp_path: Path) -> None:
    wandb.store = tmp_path / "store"
    wandb.store.mkdir()
    (wandb.store / "best_model.zip").touch()
    assert fetch_artifact("wandb:p/zip:v0").name == "best_model.zip"


def test_fetch_artifact__failure_is_one_line(wandb: FakeWandb) -> None:
    with pytest.raises(ConfigError) as failed:
        fetch_artifact("wandb:nowhere")
    assert str(failed.value) == (
        "wandb:nowhere cannot be downloaded from W&B (RuntimeError: artifact not found in two lines); "
        "expected wandb:ENTITY/PROJECT/NAME:VERSION, and `wandb login`"
    )


# --- W&B itself ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_train__logs_artifacts_with_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = tmp_path / "run"
    flags = [*FAILING_TINY, "--total-timesteps", "32", "--output-dir", str(run)]
    assert main(["train", "so101-paper", *flags, "--wandb-project", "p", "--wandb-artifacts"]) == 0
    assert main(["eval", str(run), "--n-episodes", "1", "--wandb-artifacts"]) == 0
    run_id = json.loads((run / "wandb.json").read_text())["id"]
    expected = {b"run-model", b"run-evaluation", b"best_model/policy.safetensors", b"eval.json"}
    missing = expected
    for _ in range(100):  # W&B's own process writes them
        files = (run / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
        records = b"".join(file.read_bytes() for file in files)
        missing = {text for text in expected if text not in records}
        if not missing:
            break
        time.sleep(0.1)
    assert missing == set()

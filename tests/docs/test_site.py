"""The documentation site, and the tables that are generated."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT


@pytest.fixture
def flags_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flags_table", ROOT / "scripts" / "flags_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flags_table__page_is_up_to_date(flags_table: ModuleType) -> None:
    assert flags_table.main(["--check"]) == 0, "run: python scripts/flags_table.py"


def test_flags_table__check_finds_a_stale_page(
    flags_table: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "off_policy.md"
    page.write_text(flags_table.PAGE.read_text().replace("| `--tau` | 0.005 |", "| `--tau` | 0.5 |"))
    monkeypatch.setattr(flags_table, "PAGE", page)
    assert flags_table.main(["--check"]) == 1
    assert "stale; run: python scripts/flags_table.py" in capsys.readouterr().err
    assert flags_table.main([]) == 0
    assert "| `--tau` | 0.005 |" in page.read_text()
    assert flags_table.main(["--check"]) == 0


def test_flags_table__has_values_of_each_learner(flags_table: ModuleType) -> None:
    lines = flags_table.generate().splitlines()
    assert any(line.startswith("| `--gamma` | 0.99 | 0.97 | ") for line in lines)
    assert any(line.startswith("| `--hidden-sizes` | 128 128 | 256 256 256 | ") for line in lines)
    assert any(line.startswith("| `--residual-scale` | 0.6 | 0.1 | ") for line in lines)
    assert any(line.startswith("| `--critic-layer-norm` | on | off | ") for line in lines)
    assert any(line.startswith("| `--target-noise-clip` | 0.5 | ") for line in lines)


@pytest.mark.slow
def test_site__builds_without_warnings_or_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs pip install 'residual-rl[docs]'")
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    # Without --quiet, which would keep the warnings from --strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert 'href="tutorial.html"' in first
    assert 'src="media/demo.gif"' in first
    assert "fonts.googleapis" not in first
    assert 'id="residual_rl.types.BasePolicy"' in (tmp_path / "site" / "api" / "core.html").read_text()
    assert (tmp_path / "site" / "examples" / "custom_task.py").is_file()

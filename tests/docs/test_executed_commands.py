"""Commands of the documentation that take under a minute, run one after the other in one folder.

A line that takes longer is run with more flags, which lower the number of episodes. The other commands take
minutes (training, benchmarks), run until they are stopped (servers, viewers), or need another environment;
`test_commands.py` checks their flags.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doc_pages import commands, split
from paths import ROOT

from residual_rl.cli.main import main

pytestmark = pytest.mark.slow


def success_rate(table: str) -> float:
    """The success rate [%] in a table that `residual-rl eval` printed."""
    found = re.search(r"Success \(once\)\s*│\s*([\d.]+) %", table)
    assert found is not None, table
    return float(found[1])


Check = Callable[[Path, str], bool]
"""Whether the command succeeded, from the folder and the printed text."""
HYBRID = "residual-rl eval so101-paper --base-policy hybrid"
EXECUTED: list[tuple[str, str, list[str], Check]] = [
    (
        "README.md",
        "residual-rl list",
        [],
        lambda _, out: all(name in out for name in ("so101-paper", "jacobian-yaw", "policy-decorator")),
    ),
    (
        "README.md",
        "residual-rl train so101-paper --quick",
        ["--output-dir", "runs/x"],  # where the lines below look for it
        lambda folder, _: (folder / "runs/x/report.html").is_file(),
    ),
    ("README.md", "residual-rl train --resume runs/x", [], lambda _, out: "Run folder: runs/x" in out),
    (
        "README.md",
        "residual-rl eval runs/x --compare-base --plot --save-video",
        ["--n-episodes", "2", "--overwrite"],
        lambda folder, _: (
            (folder / "runs/x/video.mp4").stat().st_size > 10_000
            and set(json.loads((folder / "runs/x/eval.json").read_text())["policies"]) == {"base", "residual"}
        ),
    ),
    (
        "docs/tutorial.md",
        "residual-rl eval so101-paper --base-policy jacobian --n-episodes 200",
        [],
        lambda _, out: 33.5 <= success_rate(out) <= 46.9,
    ),
    (
        "docs/tutorial.md",
        "residual-rl view so101-paper --cameras views/",
        [],
        lambda folder, _: len(list((folder / "views").glob("*.png"))) >= 2,
    ),
    (
        "docs/base_policies.md",
        f"{HYBRID} --base.policies jacobian zero --base.weights 0.7 0.3",
        ["--n-episodes", "2"],
        lambda _, out: "Success (once)" in out,
    ),
    (
        "docs/base_policies.md",
        (
            f"{HYBRID} --base.policies jacobian jacobian-yaw --base.mode switch --base.switch-on goal"
            " --base.switch-below 0.05"
        ),
        ["--n-episodes", "2"],
        lambda _, out: "Success (once)" in out,
    ),
    (
        "README.md",
        "residual-rl demos collect so101-paper --policy oracle --output demos.h5",
        ["--n-episodes", "4"],
        lambda folder, _: (folder / "demos.json").is_file(),
    ),
    ("docs/imitation.md", "residual-rl demos info demos.h5", [], lambda _, out: "so101-paper" in out),
    (
        "docs/imitation.md",
        "residual-rl demos replay demos.h5 --save-video",
        [],
        lambda folder, _: len(list(folder.glob("demos*.mp4"))) == 1,
    ),
    (
        "docs/so101_arm.md",
        "residual-rl deploy jacobian --task so101-paper --sim",
        ["--no-real-time"],
        lambda folder, out: (
            "of which 1 were solved" in out and len(list(folder.glob("runs/deploy-*/deploy.json"))) == 1
        ),
    ),
    (
        "docs/so101_arm.md",
        (
            "residual-rl eval so101-paper --base-policy jacobian --safety --workspace 0.05 0.45 -0.3 0.3"
            " -0.02 0.4 --n-episodes 200"
        ),
        ["--n-episodes", "2"],
        lambda _, out: "Success (once)" in out,
    ),
    ("docs/so101_paper.md", "residual-rl doctor so101-paper", ["--quick"], lambda _, out: "all" in out),
]


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line, _, _ in EXECUTED])
def test_executed_commands__are_documented(page: str, line: str) -> None:
    assert line in {" ".join(c.words) for c in commands() if c.page == page}


@pytest.mark.usefixtures("opengl")
def test_executed_commands__have_the_documented_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One test, since later lines use the files of earlier ones, and workers of pytest-xdist share no
    folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for page, line, more, check in EXECUTED:
        code = main([*shlex.split(line)[1:], *more])
        printed = capfd.readouterr()
        assert code == 0, f"{page}: {line}\n{printed.err}"
        assert check(tmp_path, printed.out), f"{page}: {line}\n{printed.out}"


def test_executed_commands__python_of_the_readme() -> None:
    code = next(block for block in re.split(r"\n{3,}", split("README.md")[1]) if "import gymnasium" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["env"].action_space.shape == (6,)
    assert names["vec_env"].num_envs == 64
    names["env"].close()
    names["vec_env"].close()


def test_executed_commands__make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "docs", "lint"):
        assert re.search(rf"make {target}\s", done.stdout)

"""The report: its contents, self-contained and escaped; the table for the terminal; the plots."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from residual_rl.errors import CheckpointError
from residual_rl.evaluation.eval_file import metrics_of, read_evaluation
from residual_rl.evaluation.formatting import interval_text, label, number, value_text
from residual_rl.evaluation.plots import make_plots, series, svg
from residual_rl.evaluation.report import format_table, headline, write_report
from residual_rl.runs.logger import Logger
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import write_json
from residual_rl.utils.statistics import paired_difference, summarize

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and texts, and asserts that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evaluation(
    policies: tuple[str, ...] = ("zero", "residual", "base"), n: int = 40, **more: Any
) -> dict[str, Any]:
    """`residual` fails every tenth episode, `base` three of four, `zero` all."""
    seeds = list(range(10_000_000, 10_000_000 + n))
    won = {
        "residual": [i % 10 > 0 for i in range(n)],
        "base": [i % 4 == 1 for i in range(n)],
        "zero": [False] * n,
    }
    values = {
        name: {
            "success_once": dict(zip(seeds, map(float, won[name]), strict=True)),
            "return": {s: (9.0 if w else -60.0) + s % 7 for s, w in zip(seeds, won[name], strict=True)},
            "final_distance": {
                s: (0.001 if w else 0.02) * (1 + s % 5) for s, w in zip(seeds, won[name], strict=True)
            },
        }
        for name in policies
    }
    summaries = {
        name: {
            m: {
                **summarize(list(v.values()), m == "success_once").to_json(),
                "per_episode": {str(s): x for s, x in v.items()},
            }
            for m, v in metrics.items()
        }
        for name, metrics in values.items()
    }
    found: dict[str, Any] = {
        "format_version": 1,
        "task": "toy",
        "settings": {"n_episodes": n, "changed_from_training": {}},
        "episode_seeds": seeds,
    }
    found |= {"units": {"final_distance": "m"}, "policies": summaries, "paired": {}}
    if {"residual", "base"} <= set(policies):
        pair = {
            m: paired_difference(values["residual"][m], values["base"][m], m == "success_once").to_json()
            for m in values["base"]
        }
        found["paired"] = {"residual-base": pair}
    return found | more


def make_run(
    path: Path,
    config: dict[str, Any] | None = None,
    command: tuple[str, ...] = ("residual-rl", "train", "toy"),
) -> RunFolder:
    with (
        RunFolder(path).start(config or {"task_id": "toy", "ppo": {"lr": 0.0005}}, command) as run,
        Logger(path) as logger,
    ):
        for i in range(1, 6):
            tags = {
                "rollout/success_rate_100": i / 5,
                "rollout/ep_rew_mean": -i,
                "eval/success_rate": i / 5,
                "residual/magnitude": 0.1 * i,
            }
            tags |= {"task/dist_to_goal": 1 / i, "reward/success": i}
            times = {"time/simulation": 1.0, "time/learner": 3.0, "time/fps": 1000 + i}
            logger.log(
                {**tags, **times, "train/value_loss": 1 / i, "train/explained_variance": float("nan")},
                2048 * i,
            )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = make_run(tmp_path_factory.mktemp("run") / "x")
    write_json(run.eval_file, evaluation())
    write_json(run.summary_file, {"wall_time": 113.4, "time_to_95": 75.0, "step_to_95": 8192})
    (run.path / "video.mp4").touch()
    write_report(run.path, plot=True)
    return run


def test_write_report__contains_results_settings_and_plots(run: RunFolder) -> None:
    html = (run.path / "report.html").read_text()
    page = Page(html)
    text = " ".join(" ".join(page.texts).split())
    assert "90.0 % of episodes succeed with the residual, 25.0 % with the base policy alone." in text
    assert "Measured on 40 fresh episodes, seeds 10000000 to 10000039, the same for every policy." in text
    assert "The env settings, including randomisation, are those of training." in text
    assert "[76.9, 96.0]" in text  # Wilson for 36 of 40
    assert "+65.0 pp" in text
    assert "10,240" in text
    assert "Trained for 10,240 steps in 1:53" in text
    assert "95 % success after 1:15 8,192 steps" in text
    assert "residual-rl train toy" in text
    assert "ppo.lr" in text
    assert "Final distance [m]" in text
    assert [attributes["src"] for tag, attributes in page.tags if tag == "video"] == ["video.mp4"]
    assert sum(tag == "svg" for tag, _ in page.tags) == 7
    for title in (
        "Learning curves",
        "Success by policy",
        "Every episode, residual against base",
        "Residual",
        "Dist to goal",
        "Reward: success",
        "Learner",
        "Time",
    ):
        assert title in text


def test_write_report__page_loads_only_the_video(run: RunFolder) -> None:
    html = (run.path / "report.html").read_text()
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(name) or "#").startswith("#") or (tag, attributes[name]) == (
                "video",
                "video.mp4",
            )
    assert set(re.findall(r"https?://[^\"'\s]*", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_write_report__ids_are_unique_and_references_resolve(run: RunFolder) -> None:
    html = (run.path / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', html)) | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_write_report__writes_png_files_with_plot(run: RunFolder) -> None:
    files = sorted(run.eval_results.iterdir())
    assert [f.stem for f in files] == [
        "curves",
        "episodes",
        "learning",
        "residual",
        "success",
        "task",
        "time",
    ]
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert image.width == 1500


@pytest.mark.slow
def test_write_report__escapes_names(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>$x_'
    run = make_run(tmp_path / "x", {evil: evil}, ("residual-rl", evil))
    found = evaluation()
    found["task"], found["settings"][evil] = evil, evil
    for policy in found["policies"].values():
        policy[evil] = policy["return"]
    found["policies"][evil] = found["policies"]["zero"]
    found["units"][evil] = evil
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99_999, f"residual/{evil}": 1.0, f"time/{evil}": 1.0}) + "\n")
    page = Page(write_report(run.path, found).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(evil in text for text in page.texts) >= 5


@pytest.mark.slow
def test_write_report__equal_contents_give_an_equal_page(run: RunFolder) -> None:
    before = (run.path / "report.html").read_bytes()
    assert write_report(run.path).read_bytes() == before


@pytest.mark.slow
def test_write_report__run_without_an_evaluation_shows_curves_and_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x")
    text = " ".join(Page(write_report(run.path).read_text()).texts)
    assert "not evaluated yet" in text
    assert f"residual-rl eval {run.path}" in text
    assert "Learning curves" in text
    assert "Video" not in text


def test_write_report__needs_only_an_evaluation(tmp_path: Path) -> None:
    found = evaluation(("base",), n=1, settings={"changed_from_training": {"task.tolerance": [0.02, 0.005]}})
    text = " ".join(Page(write_report(tmp_path, found).read_text()).texts)
    assert "100.0 %" not in text
    assert "0.0 % of episodes succeed with the base policy." in text
    assert "The env settings differ from those of training: task.tolerance = 0.005 (was 0.02)." in text
    assert found["policies"]["base"]["return"]["interval"] is None


def test_headline__describes_the_evaluation_or_its_absence() -> None:
    assert headline(None) == "Trained; not evaluated yet."
    assert headline(evaluation(("residual",))) == "90.0 % of episodes succeed with the residual policy."


def test_format_table__shows_means_intervals_and_differences() -> None:
    out = io.StringIO()
    Console(file=out, width=110).print(format_table(evaluation()))
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "toy: 40 episodes, mean [95 % interval]"
    assert re.findall(r"[\w−]+(?: − \w+)?", lines[2]) == [
        "metric",
        "residual",
        "base",
        "zero",
        "residual − base",
    ]
    row = next(i for i, line in enumerate(lines) if "Success (once)" in line)
    assert [cell.strip() for cell in lines[row].split("│")[1:-1]] == [
        "Success (once)",
        "90.0 %",
        "25.0 %",
        "0.0 %",
        "+65.0 pp",
    ]
    assert [cell.strip() for cell in lines[row + 1].split("│")[1:-1]] == [
        "",
        "[76.9, 96.0]",
        "[14.2, 40.2]",
        "[0.0, 8.8]",
        "[46.5, 77.3]",
    ]
    assert any("Final distance [m]" in line for line in lines)


def test_metrics_of__returns_metrics_in_their_order_of_display() -> None:
    found = evaluation()
    assert metrics_of(found) == ["success_once", "return", "final_distance"]
    assert label("final_distance", found) == "Final distance [m]"
    assert label("episode_length") == "Episode length [steps]"
    assert label("yaw_error") == "Yaw error"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0061234, "0.00612"),
        (-33.44, "−33.4"),
        (1234.5, "1,234"),
        (1.234e-5, "1.23e−05"),
        (400.0, "400"),
    ],
)
def test_number__has_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_value_text__has_the_unit_of_the_metric() -> None:
    assert value_text("success_once", 0.985) == "98.5 %"
    assert value_text("success_once", -0.125, sign=True) == "−12.5 pp"
    assert value_text("return", 41.1, sign=True) == "+41.1"
    assert value_text("return", 0.0, sign=True) == "0"
    assert interval_text("success_at_end", [0.95, 1.0]) == "[95.0, 100.0]"
    assert interval_text("return", None) == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format_version": 2, "policies": {}}', '{"format_version": 1}']
)
def test_read_evaluation__names_the_invalid_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "eval.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/eval\.json .*`residual-rl eval {tmp_path}`"):
        write_report(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere\.json does not exist"):
        read_evaluation(tmp_path / "nowhere.json")


def test_series__thins_long_runs() -> None:
    rows = [{"step": i, "x": float(i), "y": None} for i in range(100_000)]
    steps, values = series(rows, "x")
    assert len(steps) == 1000
    assert values[:3] == [0.0, 100.0, 200.0]
    assert series(rows, "y") == ([], [])


def test_time_plot__shares_add_up_to_one() -> None:
    # cumulative seconds; the third row is from a resumed session, which starts at zero
    seconds = [(1.0, 1.0), (2.0, 6.0), (1.0, 0.0)]
    rows: list[dict[str, float]] = [{"step": 0, "eval/x": 1.0}]
    rows += [
        {"step": i, "time/simulation": a, "time/learner": b, "time/wall": 9.0, "time/fps": 100.0}
        for i, (a, b) in enumerate(seconds, 1)
    ]
    (plot,) = make_plots(rows)
    share, speed = plot.figure.axes
    assert share.get_legend_handles_labels()[1] == ["Simulation", "Learner"]
    simulation = share.collections[0].get_paths()[0].vertices
    assert [max(y for x, y in simulation if x == step) for step in (1, 2, 3)] == pytest.approx(
        [1 / 2, 2 / 8, 3 / 9]
    )
    assert share.collections[1].get_paths()[0].vertices[:, 1].max() == pytest.approx(1.0)
    assert speed.lines[0].get_ydata().tolist() == [100.0] * 3


def test_episodes_plot__pairs_by_seed_and_colours_each_outcome() -> None:
    plot = next(p for p in make_plots([], evaluation()) if p.name == "episodes")
    axis = plot.figure.axes[0]
    sizes = {c.get_label(): len(c.get_offsets()) for c in axis.collections}
    # of 40 episodes, the residual fails if i % 10 == 0 and the base succeeds if i % 4 == 1, never both
    assert sizes == {"both succeed": 10, "residual only": 26, "base only": 0, "neither": 4}
    base, residual = axis.collections[0].get_offsets()[0]
    assert (base, residual) == (0.002, 0.002)  # i = 1: seed 10000001, s % 5 == 1


def test_svg__has_the_text_colour_of_the_page() -> None:
    plot = next(p for p in make_plots([], evaluation()) if p.name == "success")
    text = svg(plot)
    assert "currentColor" in text
    assert "#1b2230" not in text
    assert "#000000" not in text.replace("fill: none; stroke: #000000", "")

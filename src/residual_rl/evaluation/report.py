"""`report.html`: results of a run on one self-contained page; only the video is a separate file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError
from residual_rl.evaluation.deployment import Deployment
from residual_rl.evaluation.eval_file import PAIR, is_rate, metrics_of, policies_of, read_evaluation
from residual_rl.evaluation.formatting import format_table, interval_text, label, pair_text, value_text
from residual_rl.evaluation.plots import Plot, make_plots, save_pngs, svg
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.progress_bar import clock_time
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import parse_json, write_atomically
from residual_rl.utils.text import one_line, shell_command

__all__ = ["format_table", "write_report"]

KEY_PACKAGES = ("residual-rl", "torch", "mujoco", "gymnasium", "numpy")


def write_report(
    run_dir: Path | str, evaluation: Mapping[str, Any] | None = None, plot: bool = False
) -> Path:
    """Write `run_dir/report.html` from the files of the run folder.

    Args:
        run_dir: the run folder.
        evaluation: content of `eval.json`, which is read from the folder by default. A page without an
            evaluation shows the command that creates one.
        plot: also write the plots to `eval_results/` as PNG files.

    Returns:
        The path of the report.

    Raises:
        CheckpointError: a file of the run is damaged.
        WriteError: a file cannot be written.
    """
    run = RunFolder(run_dir)
    if evaluation is None and run.eval_file.exists():
        evaluation = read_evaluation(run.eval_file)
    rows = read_metrics(run.metrics_file) if run.metrics_file.exists() else []
    plots = make_plots(rows, evaluation)
    path = run.path / "report.html"
    try:
        page = "".join(_page(run, evaluation, rows, plots))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be written, because config.json, training_summary.json, versions.json or "
            f"command.txt beside it is damaged ({one_line(error)}); restore it, or remove it"
        ) from error
    write_atomically(path, page)
    if plot:
        save_pngs(plots, run.eval_results)
    return path


def _page(
    run: RunFolder, evaluation: Mapping[str, Any] | None, rows: list[dict[str, Any]], plots: list[Plot]
) -> Iterator[str]:
    config = _read_json(run.config_file)
    summary = _read_json(run.summary_file)
    task = str((evaluation or {}).get("task") or config.get("task_id") or run.path.name)
    # Head, headline and cards.
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{escape(task)} · residual_rl</title>\n<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n"
    yield f'<header><div class="eyebrow">{escape(task)}</div>\n<h1>{escape(headline(evaluation))}</h1>\n'
    deployment = Deployment.from_summary(summary)
    more = "" if deployment is None else f" {deployment.text}"
    yield f'<p class="lead">{escape(_lead(evaluation, run) + more)}</p></header>\n'
    yield _cards(evaluation, rows, summary)
    # Video, results, plots and settings.
    if (run.path / "video.mp4").exists():
        yield '<section><h2>Video</h2><p class="note">The same episodes, side by side.</p>'
        yield '<video src="video.mp4" controls muted loop autoplay playsinline></video></section>\n'
    if evaluation is not None:
        yield _results(evaluation)
    for plot in plots:
        yield f'<section><h2>{escape(plot.title)}</h2><p class="note">{escape(plot.caption)}</p>'
        yield f'<figure role="img" aria-label="{escape(plot.title)}">{svg(plot)}</figure></section>\n'
    yield _reproduce(run, evaluation, config, summary)
    yield "<footer>Created by residual_rl. This page needs no network.</footer>\n</main>\n</body>\n</html>\n"


def headline(evaluation: Mapping[str, Any] | None) -> str:
    """The success rates in one sentence."""
    policies = (evaluation or {}).get("policies", {})
    residual, base = (policies.get(name, {}).get("success_once") for name in ("residual", "base"))
    if residual and base:
        others = [
            name
            for name in policies
            if name not in ("residual", "base", "zero") and "success_once" in policies[name]
        ]
        more = "".join(f", {_percent(policies[name]['success_once'])} {name}" for name in others)
        alone = f"{_percent(base)} with the base policy alone"
        return f"{_percent(residual)} of episodes succeed with the residual, {alone}{more}."
    if residual or base:
        name = "residual" if residual else "base"
        return f"{_percent(residual or base)} of episodes succeed with the {name} policy."
    return "Trained; not evaluated yet."


def _percent(summary: Mapping[str, Any]) -> str:
    return f"{100 * summary['mean']:.1f} %"


def _lead(evaluation: Mapping[str, Any] | None, run: RunFolder) -> str:
    if evaluation is None:
        return f"Evaluate it with: {shell_command('eval', run.path, '--compare-base', '--compare-zero')}"
    seeds = evaluation.get("episode_seeds", [])
    span = f", seeds {min(seeds)} to {max(seeds)}" if seeds else ""
    text = f"Measured on {len(seeds)} fresh episodes{span}, the same for every policy."
    changed = evaluation.get("settings", {}).get("changed_from_training")
    if changed:
        changes = ", ".join(f"{name} = {now} (was {before})" for name, (before, now) in changed.items())
        return f"{text} The env settings differ from those of training: {changes}."
    if changed is None:
        return text
    return f"{text} The env settings, including randomisation, are those of training."


def _cards(
    evaluation: Mapping[str, Any] | None, rows: list[dict[str, Any]], summary: Mapping[str, Any]
) -> str:
    cards = []
    for name in policies_of(evaluation) if evaluation else ():
        rate = evaluation["policies"][name].get("success_once")  # type: ignore[index]
        if rate:
            cards.append((name, f"Success, {name}", _percent(rate), _interval("success_once", rate)))
    # Paired difference.
    difference = (evaluation or {}).get("paired", {}).get(PAIR, {}).get("success_once")
    if difference:
        text = value_text("success_once", difference["mean"], sign=True)
        cards.append(("difference", "Residual − base", text, _interval("success_once", difference)))
    # Duration of training.
    if rows:
        seconds = summary.get("wall_time")
        more = f"steps in {clock_time(seconds)}" if seconds else "environment steps"
        cards.append(("steps", "Trained for", f"{rows[-1]['step']:,}", more))
    if summary.get("time_to_95"):
        steps = f"{summary.get('step_to_95', 0):,} steps"
        cards.append(("steps", "95 % success after", clock_time(summary["time_to_95"]), steps))
    body = "".join(
        f'<div class="card {escape(kind)}"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div><div class="more">{escape(more)}</div></div>\n'
        for kind, name, value, more in cards
    )
    return f'<div class="cards">\n{body}</div>\n' if cards else ""


def _interval(metric: str, summary: Mapping[str, Any]) -> str:
    return f"95 %: {interval_text(metric, summary['interval'])}" if summary["interval"] else ""


def _results(evaluation: Mapping[str, Any]) -> str:
    names = policies_of(evaluation)
    pairs = evaluation.get("paired", {})
    head = "".join(f'<th><i class="dot {escape(name)}"></i>{escape(name)}</th>' for name in names)
    body = ""
    for metric in metrics_of(evaluation):
        cells = "".join(_cell(evaluation, metric, evaluation["policies"][name].get(metric)) for name in names)
        differences = "".join(
            _cell(evaluation, metric, paired.get(metric), sign=True) for paired in pairs.values()
        )
        body += f"<tr><th>{escape(label(metric, evaluation))}</th>{cells}{differences}</tr>\n"
    pair = "".join(f"<th>{escape(pair_text(name))}</th>" for name in pairs)
    return (
        '<section><h2>Results</h2><p class="note">Means with 95 % intervals below: Wilson’s for outcomes, '
        "Student’s t for other metrics. Differences are paired by episode seed (for outcomes with Agresti "
        "and Min’s interval; pp: percentage points).</p>\n"
        f'<div class="scroll"><table class="results"><thead><tr><th></th>{head}{pair}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div></section>\n"
    )


def _cell(
    evaluation: Mapping[str, Any], metric: str, summary: Mapping[str, Any] | None, sign: bool = False
) -> str:
    if summary is None:
        return "<td>–</td>"
    value = escape(value_text(metric, summary["mean"], sign, evaluation))
    interval = escape(interval_text(metric, summary["interval"], evaluation))
    shown = f"<b>{value}</b>" if is_rate(metric, evaluation) else value
    return f"<td>{shown}<span>{interval}</span></td>"


def _reproduce(
    run: RunFolder, evaluation: Mapping[str, Any] | None, config: dict[str, Any], summary: dict[str, Any]
) -> str:
    versions = _read_json(run.path / "versions.json")
    packages, git = versions.get("packages", {}), versions.get("git") or {}
    short = {
        "python": versions.get("python"),
        **{name: packages.get(name) for name in KEY_PACKAGES},
        **versions.get("machine", {}),
    }
    if git.get("commit"):
        short["git commit"] = git["commit"] + (" with changes (git.diff)" if git.get("dirty") else "")
    tables = [
        ("Training settings", config),
        ("Evaluation settings", (evaluation or {}).get("settings", {})),
        ("Training summary", summary),
        ("Versions and machine", {key: value for key, value in short.items() if value is not None}),
        ("All packages", packages),
    ]
    command_file = run.path / "command.txt"
    command = (
        f"<pre>{escape(command_file.read_text(encoding='utf-8').strip())}</pre>"
        if command_file.exists()
        else ""
    )
    body = "".join(
        f"<details><summary>{escape(title)}</summary>{_settings(table)}</details>\n"
        for title, table in tables
        if table
    )
    note = '<p class="note">Command line, settings and versions.</p>'
    return f"<section><h2>Reproduce it</h2>{note}{command}\n{body}</section>\n"


def _settings(settings: Mapping[str, Any]) -> str:
    lines = (f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(settings))
    return f"<table><tbody>{''.join(lines)}</tbody></table>"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); expected JSON") from error
    return content if isinstance(content, dict) else {}


def _css() -> str:
    return resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")

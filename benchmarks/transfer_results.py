"""Results of `transfer.py`: success rates, paired differences, the table and the plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from paired import won_and_lost
from residual_rl.evaluation.formatting import interval_text, value_text
from residual_rl.utils.statistics import paired_difference, proportion

RATE = "success_once"
REFERENCE = "nothing"
"""The row that the others are compared with."""
Results = dict[str, Any]


def results_of(evaluations: Mapping[str, Mapping[str, Any]]) -> Results:
    """Success of each policy in each setting, and its difference from that of the reference.

    Args:
        evaluations: the contents of `eval.json`, by policy and setting.
    """
    outcomes = {
        policy: {setting: _outcomes(evaluation) for setting, evaluation in settings.items()}
        for policy, settings in evaluations.items()
    }
    results: Results = {}
    for policy, settings in outcomes.items():
        results[policy] = {}
        for setting, by_seed in settings.items():
            entry: Results = {
                "success": proportion(list(by_seed.values())).to_json(),
                "first_seed": min(by_seed),
                "outcomes": "".join(str(int(by_seed[seed])) for seed in sorted(by_seed)),
            }
            reference = outcomes.get(REFERENCE, {}).get(setting)
            if reference is not None and policy != REFERENCE:
                difference = paired_difference(by_seed, reference, binary=True)
                won, lost = won_and_lost(list(by_seed.values()), [reference[seed] for seed in by_seed])
                entry |= {"difference": difference.to_json(), "won": won, "lost": lost}
            results[policy][setting] = entry
    return results


def _outcomes(evaluation: Mapping[str, Any]) -> dict[int, float]:
    policies = evaluation["policies"]
    summary = policies["residual" if "residual" in policies else "base"][RATE]
    return {int(seed): value for seed, value in summary["per_episode"].items()}


def table(results: Results) -> Table:
    """A row for each policy, with its success and the difference from the reference in each setting."""
    settings = list(results["settings"])
    made = Table("trained with", title="so101-paper", title_justify="left")
    for setting in settings:
        made.add_column(setting, justify="right")
        made.add_column(f"− {REFERENCE}", justify="right")
    for policy, found in results["policies"].items():
        made.add_row(policy, *(cell for setting in settings for cell in _cells(found[setting])))
    if results["missing"]:
        made.caption = f"missing: {', '.join(results['missing'])}"
    return made


def _cells(entry: Results) -> Iterator[str]:
    for name, sign in (("success", False), ("difference", True)):
        if name in entry:
            summary = entry[name]
            yield (
                f"{value_text(RATE, summary['mean'], sign=sign)}\n{interval_text(RATE, summary['interval'])}"
            )
        else:
            yield ""


def plot(results: Results, path: Path) -> None:
    """A panel for each setting: success of each policy with its 95 % interval."""
    from matplotlib.figure import Figure

    policies = results["policies"]
    if not policies:
        return
    figure = Figure(figsize=(9, 1.4 + 0.35 * len(policies)), layout="constrained")
    panels = figure.subplots(1, len(results["settings"]), sharey=True)
    for axes, setting in zip(panels, results["settings"], strict=True):
        for y, found in enumerate(policies.values()):
            summary = found[setting]["success"]
            low, high = (100 * end for end in summary["interval"])
            axes.plot([low, high], [y, y], color="C0", linewidth=4, alpha=0.35)
            axes.plot(100 * summary["mean"], y, "o", color="C0")
        axes.set(title=f"{setting} setting", xlim=(-2, 102), xlabel="success [%]")
        axes.set_yticks(range(len(policies)), list(policies))
        axes.grid(alpha=0.2)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=110)

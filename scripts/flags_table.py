"""Write the tables of flags in docs/off_policy.md from the config dataclasses and their field docstrings.

python scripts/flags_table.py            # rewrites the part between the two markers
python scripts/flags_table.py --check    # exits with 1 if that part is stale
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from residual_rl.cli.flags import field_docs
from residual_rl.config import ResidualCfg, RunCfg
from residual_rl.learners.off_policy.config import (
    GatedSACCfg,
    OffPolicyCfg,
    PolicyDecoratorCfg,
    SACCfg,
    TD3Cfg,
)
from residual_rl.registry import LEARNERS

PAGE = Path(__file__).parents[1] / "docs" / "off_policy.md"
BEGIN = "<!-- flags: begin (scripts/flags_table.py writes this part) -->"
END = "<!-- flags: end -->"


def shown(value: Any) -> str:
    """A value in the notation of the table."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-")
    return str(value)


def table(docs: dict[str, str], names: Iterable[str], columns: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of the fields `names`, with a column of values for each learner.

    A cell of a later column is empty if its value is that of the first one.
    """
    lines = [f"| flag | {' | '.join(columns)} | meaning |", "|---|" + "---|" * len(columns) + "---|"]
    for name in names:
        first, *others = (values[name] for values in columns.values())
        cells = [shown(first), *("" if value == first else shown(value) for value in others)]
        text = docs[name].replace("|", "\\|")
        lines.append(f"| `--{name.replace('_', '-')}` | {' | '.join(cells)} | {text} |")
    return "\n".join(lines)


def run_settings() -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Names of the run settings whose defaults depend on the learner, and their values for each learner."""
    defaults = {**vars(ResidualCfg()), **vars(RunCfg())}
    changed = {
        learner: dict(LEARNERS.get(learner).train_overrides)
        for learner in ("sac", "policy-decorator", "gated-sac")
    }
    names = [name for name in defaults if any(name in overrides for overrides in changed.values())]
    return names, {f"`{learner}`": {**defaults, **overrides} for learner, overrides in changed.items()}


def generate() -> str:
    """The part of the page between the markers."""
    own = [field.name for field in dataclasses.fields(OffPolicyCfg)]
    sac = [field.name for field in dataclasses.fields(SACCfg) if field.name not in own]
    gated = [field.name for field in dataclasses.fields(GatedSACCfg) if field.name not in {*own, *sac}]
    td3 = [field.name for field in dataclasses.fields(TD3Cfg) if field.name not in own]
    values = {"`sac`": vars(SACCfg()), "`policy-decorator`": vars(PolicyDecoratorCfg())}
    names, run_values = run_settings()

    parts = [
        "All off-policy learners (`td3` has the defaults of `sac`):",
        table(field_docs(OffPolicyCfg), own, values),
        "`sac`, `gated-sac` and `policy-decorator` only:",
        table(field_docs(SACCfg), sac, values),
        "`gated-sac` only (it has those of `sac` too, with `--warmup-noise none` and `--warmup-steps 0`):",
        table(field_docs(GatedSACCfg), gated, {"`gated-sac`": vars(GatedSACCfg())}),
        "`td3` only:",
        table(field_docs(TD3Cfg), td3, {"`td3`": vars(TD3Cfg())}),
        "Settings of the run whose defaults depend on the learner:",
        table(field_docs(ResidualCfg) | field_docs(RunCfg), names, run_values),
    ]
    return "\n\n".join(parts)


def main(argv: list[str]) -> int:
    """Rewrite the page, or with `--check` compare it; returns the exit code."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{PAGE}: the markers are missing:\n{BEGIN}\n{END}", file=sys.stderr)
        return 1
    new = f"{before}{BEGIN}\n\n{generate()}\n\n{END}{after}"
    if "--check" not in argv:
        PAGE.write_text(new)
    elif new != text:
        print(
            "docs/off_policy.md: the table of flags is stale; run: python scripts/flags_table.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

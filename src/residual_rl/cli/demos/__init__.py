"""`residual-rl demos`: collect, inspect, replay and convert demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

from residual_rl.cli.flags import HELP
from residual_rl.errors import UnknownNameError
from residual_rl.registry import load

SUBCOMMANDS = {
    "collect": "run a policy and store its episodes: residual-rl demos collect TASK [options]",
    "info": "summarise a file: residual-rl demos info FILE [--episodes]",
    "replay": "execute the stored actions again: residual-rl demos replay FILE [options]",
    "convert": "read a file of Minari or robomimic: residual-rl demos convert FILE --task TASK [options]",
    "to-minari": "write a dataset of Minari from a file of demonstrations",
    "to-lerobot": "write a LeRobot dataset from a file of demonstrations",
    "from-lerobot": "write a file of demonstrations from a LeRobot dataset",
}
_MODULES = {
    "collect": "collect:collect_episodes",
    "info": "info:main",
    "replay": "replay:main",
    "convert": "convert:main",
    "to-minari": "minari_datasets:to_minari",
    "to-lerobot": "lerobot_datasets:to_lerobot",
    "from-lerobot": "lerobot_datasets:from_lerobot",
}
"""Module and function of each subcommand."""


def main(argv: Sequence[str]) -> int:
    """Run the subcommand that the first argument names."""
    if not argv or argv[0] in HELP:
        # the help of `demos` itself; each subcommand has its own
        width = max(map(len, SUBCOMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, text in SUBCOMMANDS.items()]
        print(
            "\n".join(
                [
                    "usage: residual-rl demos SUBCOMMAND [options]      "
                    "(SUBCOMMAND --help lists all options)",
                    "",
                    *lines,
                ]
            )
        )
        return 0 if argv else 2
    if argv[0] not in SUBCOMMANDS:
        raise UnknownNameError("subcommand of demos", argv[0], SUBCOMMANDS)
    # only the module of the chosen subcommand is imported
    command = load(f"residual_rl.cli.demos.{_MODULES[argv[0]]}")
    code: int = command(argv[1:])
    return code

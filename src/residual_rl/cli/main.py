"""Entry point of `residual-rl`. Only the module of the chosen command is imported, so that help is fast."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

import residual_rl
from residual_rl.utils.streams import replace_closed_streams
from residual_rl.utils.terminal import degrade_output, expand_home

COMMANDS = {
    "list": ("", "show the registered tasks, base policies, learners and presets"),
    "train": ("TASK", "train a residual on a task, or resume a run (--resume RUN)"),
    "eval": ("RUN|TASK", "evaluate a run against its base policy, or a base policy alone"),
    "probe": ("TASK", "measure a base policy before a training, and choose settings for it"),
    "sweep": ("TASK", "train a grid of settings with several seeds, and rank them"),
    "distill": ("RUN", "train one policy that imitates a run, without its base policy and residual"),
    "imitate": ("DEMOS", "train a base policy from demonstrations: bc, diffusion, flow or act"),
    "convert": ("CHECKPOINT", "convert a public Diffusion Policy checkpoint to a base policy"),
    "demos": ("SUBCOMMAND", "collect, inspect, replay and convert demonstrations"),
    "export": ("RUN", "write a run's policy for another program: LeRobot"),
    "deploy": ("RUN|POLICY", "run a policy on an arm, within limits"),
    "serve": ("POLICY|RUN", "serve a base policy or a run to robots and other programs"),
    "view": ("TASK", "watch a task and its policies in MuJoCo's viewer, or save camera images"),
    "doctor": ("TASK", "check the physics, rewards and episodes of a task"),
    "bench": ("TASK", "measure the speed of stepping and training"),
}
"""Target and description of each command."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    replace_closed_streams()
    degrade_output()
    try:
        code = _dispatch([expand_home(word) for word in (sys.argv[1:] if argv is None else argv)])
        sys.stdout.flush()  # raises here, where it is handled, for a closed pipe or a full disk
        return code
    except BrokenPipeError:
        return _closed_pipe()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich turns a closed pipe into this
            return _closed_pipe()
        raise
    except OSError as error:  # a full disk, a file without permission: the system's message names it
        print(f"residual-rl: error: {error}", file=sys.stderr)
        _drop_output()
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(program_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"residual-rl {residual_rl.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(
            f"residual-rl: error: unknown command {argv[0]!r}; commands: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    return _run(argv[0], argv[1:])


def _run(command: str, argv: list[str]) -> int:
    from residual_rl.cli.foreign_names import hint
    from residual_rl.envs.mujoco.gl_backend import check_environment
    from residual_rl.errors import ResidualRLError
    from residual_rl.utils.consent import consenting, take_confirmations
    from residual_rl.utils.logs import PrintableFormatter
    from residual_rl.utils.text import printable

    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("residual-rl: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window of Matplotlib
    try:
        check_environment()
        others, confirmations = take_confirmations(argv)
        with consenting(*confirmations, command=["residual-rl", command, *argv]):
            code: int = importlib.import_module(f"residual_rl.cli.{command}").main(others)
        return code
    except ResidualRLError as error:
        # messages of libraries may have several lines, and texts of files and servers control characters
        text = printable(" ".join(str(error).splitlines()) + hint(error))
        print(f"residual-rl: error: {text}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("residual-rl: interrupted", file=sys.stderr)
        return 130


def _closed_pipe() -> int:
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """Discard buffered output if stdout cannot be written: flushing it at exit would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program_help() -> str:
    """The text of `residual-rl --help`."""
    usages = {name: f"{name} {target}".rstrip() for name, (target, _) in COMMANDS.items()}
    # the descriptions start in one column
    width = max(map(len, usages.values()))
    lines = [f"  {usages[name]:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "residual-rl: learn a small bounded residual on top of a frozen robot policy.",
            "",
            "usage: residual-rl COMMAND [options]      (residual-rl COMMAND --help lists all options)",
            "",
            *lines,
            "",
            "--confirm FIELD=VALUE, for every command: accept this setting of another person's file, which",
            "names code or an address. A command that needs it prints what to add.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

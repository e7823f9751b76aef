"""`residual-rl`: picks the command. Nothing heavy is imported before it is known which one runs."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

import residual_rl

COMMANDS = {
    "list": "show the registered tasks, base policies and learners",
    "train": "train a residual on a task: residual-rl train TASK [options], or --resume RUN",
    "eval": "evaluate a run against its base policy, or a base policy alone: residual-rl eval RUN|TASK [options]",
    "sweep": "train a grid of settings with several seeds, and rank them: residual-rl sweep TASK --grid SETTING=VALUE,… [options]",
    "distill": "make one policy of a run, that needs neither base nor residual: residual-rl distill RUN --out FOLDER [options]",
    "imitate": "train a base policy from demonstrations: residual-rl imitate DEMOS --algo bc|diffusion|flow|act --out FOLDER",
    "convert": "make a base policy of a public Diffusion Policy checkpoint: residual-rl convert CHECKPOINT --out FOLDER",
    "demos": "collect demonstrations, look at them, replay them: residual-rl demos SUBCOMMAND",
    "serve": "serve a base policy or a run to robots and other programs: residual-rl serve POLICY|RUN [options]",
    "view": "watch a task and its policies in MuJoCo's viewer, or save what its cameras see",
    "doctor": "check that a task's physics, rewards and episodes are what they should be",
    "bench": "measure the speed of stepping and of training",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a closed pipe or a full disk shows here, where it is handled, and not in the interpreter's last breath
        return code
    except BrokenPipeError:
        return _closed_pipe()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # what rich makes of it
            return _closed_pipe()
        raise
    except OSError as error:  # stdout on a full disk, a file that may not be read: the system's own words name it
        print(f"residual-rl: error: {error}", file=sys.stderr)
        _drop_output()
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"residual-rl {residual_rl.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"residual-rl: error: unknown command {argv[0]!r}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(argv[0], argv[1:])


def _run(command: str, argv: list[str]) -> int:
    from residual_rl.errors import ResidualRLError

    logging.basicConfig(format="residual-rl: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        code: int = importlib.import_module(f"residual_rl.cli.{command}").main(argv)
        return code
    except ResidualRLError as error:
        print(f"residual-rl: error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # one line, whatever a library's message has
        return error.exit_code
    except KeyboardInterrupt:
        print("residual-rl: interrupted", file=sys.stderr)
        return 130


def _closed_pipe() -> int:
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """Where stdout cannot be written, what is left for it goes nowhere: the interpreter's attempt at exit
    would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "residual-rl: learn a small bounded residual on top of a frozen robot policy until it works every time.",
            "",
            "usage: residual-rl COMMAND [options]      (residual-rl COMMAND --help tells all options)",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

"""Small envs for worker processes. They import NumPy alone, so that any Python can run them."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

FUNCTION = f"{__name__}:make"


class ToyEnvs:
    """Sums up actions. `cfg` selects a failure, in `make` or in `step`."""

    def __init__(self, cfg: dict[str, Any], num_envs: int):
        self.cfg, self.num_envs, self.arrays = cfg, num_envs, {}
        self.child = subprocess.Popen(["sleep", "60"]).pid if "child" in cfg else None

    def describe(self) -> dict[str, Any]:
        return {
            "num_envs": self.num_envs,
            "python": sys.executable,
            "is_ours": "residual_rl" in sys.modules,
            "child": self.child,
        }

    def share(self, arrays: dict[str, Any]) -> None:
        self.arrays |= arrays

    def close(self) -> None:
        fail(self.cfg.get("in_close"))
        if "note" in self.cfg:
            pathlib.Path(self.cfg["note"]).touch()

    def step(self) -> None:
        fail(self.cfg.get("in_step"))
        self.arrays["sum"] += self.arrays["action"]


class UserError(Exception):
    exit_code = 2


def fail(how: str | None) -> None:
    if how == "raise":
        print("the last words before", file=sys.stderr)
        raise RuntimeError("the gripper\nfell off")
    if how == "user":
        raise UserError("no such task; choose another")
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        print("waiting for Godot", flush=True)
        time.sleep(60.0)


def make(cfg: dict[str, Any], num_envs: int) -> ToyEnvs:
    fail(cfg.get("in_make"))
    return ToyEnvs(cfg, num_envs)

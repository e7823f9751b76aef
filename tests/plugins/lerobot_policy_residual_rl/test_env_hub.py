"""`examples/lerobot_env_hub/env.py`, as LeRobot loads it from a repository."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lerobot.envs import utils

pytestmark = pytest.mark.lerobot

FILE = Path(__file__).parents[3] / "examples" / "lerobot_env_hub" / "env.py"


@pytest.mark.parametrize(
    "cfg", [None, SimpleNamespace(task="so101-paper-precise", cameras=[])], ids=["without", "with"]
)
def test_make_env__gives_lerobot_the_envs(cfg: Any, opengl: None) -> None:
    module = utils._import_hub_module(str(FILE), "user/so101-paper")
    made = utils._call_make_env(module, n_envs=2, use_async_envs=False, cfg=cfg)
    envs = utils._normalize_hub_result(made)["so101_paper"][0]
    seen, _ = envs.reset(seed=[0, 1])
    assert seen["agent_pos"].shape == (2, 6)
    assert set(seen["pixels"] if cfg is None else ()) == (set() if cfg else {"top", "wrist"})
    envs.close()

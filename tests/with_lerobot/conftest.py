"""Tests that need LeRobot; `make test-lerobot` runs them in an environment of its own. Elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import os
import tempfile

# before anything imports the hub's libraries: no test may ask it, or leave something in the user's cache
os.environ["HF_HUB_OFFLINE"] = "1"
_cache = tempfile.TemporaryDirectory(prefix="residual-rl-test-")
os.environ["HF_HOME"] = _cache.name

collect_ignore_glob = [] if importlib.util.find_spec("lerobot") else ["*"]

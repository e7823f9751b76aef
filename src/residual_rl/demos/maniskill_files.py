"""Demonstration files written by ManiSkill: their description beside them, and what they may lack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from residual_rl.demos.hdf5 import Hdf5File, Shapes
from residual_rl.errors import CheckpointError
from residual_rl.utils.files import parse_json

ADD_OBS = (
    "record it with observations, or add them to a file of ManiSkill with: python -m"
    " mani_skill.trajectory.replay_trajectory --traj-path FILE --save-traj --obs-mode state"
)
"""Fix of a file without observations."""
REMOVE_EMPTY = (
    "remove empty trajectories with `clean_trajectories` of mani_skill.utils.wrappers.record, as"
    " RecordEpisode does with clean_on_close=True"
)
"""Fix of a file with episodes of no steps."""


def describe(path: Path, file: Hdf5File) -> tuple[list[str], list[dict[str, int] | None], dict[str, Any]]:
    """The names of the trajectories in `file`, their checksums (None), and the content of `FILE.json`.

    Raises `CheckpointError` if they do not match, or if the file is not of ManiSkill 3.
    """
    found = {name for name in file.names() if name.startswith("traj_")}
    if not found:
        raise CheckpointError(
            f"{path} has no trajectories traj_0, traj_1, …; expected demonstrations in ManiSkill's layout"
        )
    side = path.with_suffix(".json")
    try:
        info = parse_json(side.read_text(encoding="utf-8"))
        str(info["env_info"]["env_id"])
        names = [f"traj_{int(episode['episode_id'])}" for episode in info["episodes"]]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{side} is missing: ManiSkill describes the trajectories in {path} there"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{side} cannot be read ({error!r}); expected ManiSkill's env_info and episodes"
        ) from error
    if set(names) != found or len(names) != len(found):
        raise CheckpointError(
            f"{side} describes {len(names)} trajectories, but {path} has {len(found)} others; "
            "use the JSON file that belongs to it"
        )
    _check_version(path, names[0], file.shapes(names[0]), info)
    # the length of an episode, where the description lacks it
    for name, episode in zip(names, info["episodes"], strict=True):
        if not isinstance(episode.get("elapsed_steps"), int):
            actions = file.shapes(name).get("actions")
            episode["elapsed_steps"] = None if actions is None else actions[0]
    return names, [None] * len(names), info


def _check_version(path: Path, name: str, arrays: Shapes, info: Mapping[str, Any]) -> None:
    """Refuse a file of ManiSkill 2, whose states are one array and whose steps have no end flags."""
    if "env_states" in arrays or not {"terminated", "truncated"} & {*arrays}:
        raise CheckpointError(
            f"{path} was recorded with ManiSkill 2 or a similar program: {name} lacks the flags terminated"
            f" and truncated or the states of ManiSkill 3, which simulates {info['env_info']['env_id']}"
            " differently; download demonstrations for ManiSkill 3 (python -m"
            " mani_skill.utils.download_demo), or record them again"
        )


def seed_of(episode: Mapping[str, Any]) -> int | None:
    """The episode's seed. ManiSkill writes a number, or a list for all envs reset together, used if it has
    one entry."""
    seed = episode.get("episode_seed")
    if isinstance(seed, list):
        seed = seed[0] if len(seed) == 1 else None
    return None if seed is None else int(seed)

"""The files of base policies: their paths in settings, copies beside an exported policy, and hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from residual_rl.config import with_trust
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.exported_policy import BaseFiles
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, load
from residual_rl.utils.files import is_file, make_folder, writing
from residual_rl.utils.text import one_line

PATHS = ("checkpoint", "vec_normalize")
"""Settings of base policies that are paths of files to read."""
COPIES = "base"
"""Subfolder with the copied files."""


def with_paths(cfg: Any, find: Callable[[str], str]) -> Any:
    """Settings of a base policy with each path of a file replaced by `find(path)`."""
    if hasattr(cfg, "relocated"):
        return cfg.relocated(find)
    names = [name for name in PATHS if isinstance(getattr(cfg, name, None), str)]
    return dataclasses.replace(cfg, **{name: find(getattr(cfg, name)) for name in names}) if names else cfg


def take_files(base_policy_id: str, cfg: Any, folder: Path, copy: bool) -> tuple[Any, tuple[BaseFiles, ...]]:
    """Settings of a base policy without paths of files, and where `located` finds these files.

    Args:
        base_policy_id: id of the base policy.
        cfg: its settings; None if it has none.
        folder: the folder that is being written.
        copy: copy the files into `folder`. Otherwise they stay where they are, and are named by their
            absolute paths.

    Raises:
        ConfigError: the base policy is of a kind whose files cannot be taken along.
        CheckpointError: a file is missing.
        WriteError: a file cannot be written.
    """
    members = {
        member.checkpoint: (spec, member)
        for spec, member in _members(BASE_POLICIES.get(base_policy_id), cfg)
        if getattr(member, "checkpoint", "")
    }
    taken: list[BaseFiles] = []

    def take(path: str) -> str:
        if not path:
            return path
        spec, member = members[path]
        if spec.files is None:
            raise ConfigError(
                f"base policy {spec.id!r} reads {path}, which cannot be exported with it: train one policy "
                "from the run with `residual-rl distill`, or use `residual-rl serve`"
            )
        files: dict[str, Path] = load(spec.files)(member)
        place = f"{COPIES}/{len(taken)}"
        if copy:
            files = _copied(files, folder / place)
        else:
            place = str(_root(files))
        taken.append(BaseFiles(place, sha256_of(files), tuple(files)))
        return ""

    return with_trust(with_paths(cfg, take), False), tuple(taken)


def located(cfg: Any, files: Sequence[BaseFiles], folder: Path) -> Any:
    """Settings from `take_files` with the paths of the `files`, relative ones in `folder`.

    Raises `CheckpointError` if one is missing, or has changed.
    """
    paths = iter(files)

    def find(_: str) -> str:
        taken = next(paths, None)
        if taken is None:
            raise CheckpointError(f"the policy in {folder} names too few files of its base policy")
        place = folder / taken.path  # an absolute path stays as it is
        found = {name: place / name for name in taken.names}
        missing = [str(path) for path in found.values() if not is_file(path)]
        if missing:
            fix = "" if taken.path.startswith(COPIES) else ", which was exported without its base policy"
            raise CheckpointError(
                f"{one_line(missing[0])}, a file of the base policy of {folder}{fix}, does not exist"
            )
        if sha256_of(found) != taken.sha256:
            raise CheckpointError(
                f"{place} is not the base policy that the residual in {folder} was exported with: its "
                "SHA-256 differs; restore it, or export the run again"
            )
        return str(place)

    return with_paths(cfg, find)


def sha256_of(files: Mapping[str, Path]) -> str:
    """SHA-256 of the names and the contents of `files`."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name].stat().st_size}\0".encode())
        with files[name].open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _members(spec: BasePolicySpec, cfg: Any) -> Iterator[tuple[BasePolicySpec, Any]]:
    """A base policy and the ones that it is made of, with their settings."""
    yield spec, cfg
    for nested in cfg.nested_settings().values() if hasattr(cfg, "nested_settings") else ():
        for other in BASE_POLICIES.all():
            if nested is not None and other.config and load(other.config) is type(nested):
                yield from _members(other, nested)


def _copied(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    make_folder(folder)
    copies = {name: folder / name for name in files}
    odd = [str(path) for path in files.values() if not is_file(path)]
    if odd:  # such as a link to a device, which never ends
        raise CheckpointError(f"{odd[0]}, a file of the base policy, is missing or not a regular file")
    for name, copy in copies.items():
        with writing(copy):
            shutil.copyfile(files[name], copy)
    return copies


def _root(files: Mapping[str, Path]) -> Path:
    """The folder that has all `files` under their own names."""
    (root,) = {path.absolute().parent for path in files.values()}
    other = [path for name, path in files.items() if path.name != name]
    if other:
        raise ConfigError(
            f"{other[0]} cannot be named by its folder, since it is not called {', '.join(files)}: export it"
            " with --base-files copy"
        )
    return root

"""Checkpoints and exported policies: one safetensors file with a nested state, without pickle.

The name of a tensor is its path in the state (RFC 6901 JSON pointer without the leading slash: keys joined
by "/", with "~" and "/" in a key written "~0" and "~1"). Everything else is canonical JSON under the
metadata key `residual_rl`, with the format version, the kind of file, and a SHA-256 of the contents, which
detects flipped bits as well as truncation.

Segments (`types.Segment`) are stored in the file like everything else. Only the checkpoints of a
`CheckpointFolder` store each segment in its own file (see `segments`) and its name in the state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from residual_rl.errors import CheckpointError, ConfigError, NonFiniteError
from residual_rl.runs.segments import FOLDER, Manifest, SegmentFolder
from residual_rl.types import Segment, State
from residual_rl.utils.files import (
    make_folder,
    parse_json,
    read_bytes,
    remove_leftovers,
    write_atomically,
    writing,
)

Kind = Literal["checkpoint", "policy", "model", "dump", "segment"]
"""`checkpoint`: everything needed to resume; `policy`: a trained residual; `model`: an imitation policy;
`dump`: the tensors before a failure; `segment`: a part that checkpoints share."""
FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[State, Kind], State]] = {}
"""For each earlier format version, the function that converts its state to that of the next version."""

_METADATA_KEY = "residual_rl"
_TENSOR = "$tensor"
_SEGMENT = "$segment"
_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
_log = logging.getLogger(__name__)


def save(path: Path | str, state: State, kind: Kind) -> None:
    """Write `state` to `path` atomically: after a failure, an earlier file is unchanged.

    Equal states give identical bytes. Tensors are copied to the CPU; tensors that share memory are stored
    separately.

    Raises:
        NonFiniteError: the state contains NaN or infinity; the message names the key.
        ConfigError: the state contains a value of an unsupported type.
        WriteError: the file cannot be written.
    """
    write_atomically(Path(path), to_bytes(state, kind))


def save_dump(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write the tensors before a failure, which `load(path, "dump")` reads; NaN and infinity are allowed."""
    save(path, dict(state), "dump")


def load(path: Path | str, kind: Kind) -> State:
    """Load the state in `path`, with tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind; the message names the file and what
            was expected.
    """
    path = Path(path)
    try:
        data = read_bytes(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = f"{path} does not exist" if missing else f"cannot read {path}: {error.strerror}"
        raise CheckpointError(f"{problem}; expected a residual_rl {kind} (.safetensors)") from error
    return from_bytes(data, kind, str(path), SegmentFolder(path.parent.parent / FOLDER))


def to_bytes(state: State, kind: Kind, manifest: Manifest | None = None) -> bytes:
    """The content of the file that `save` writes. With a `manifest`, segments are stored by name only."""
    if not isinstance(state, dict):
        raise ConfigError(f"a state is a dict, not a {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "", tensors, kind != "dump", manifest is None)
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": kind, "state": packed}
    if manifest:
        document["segments"] = manifest
    document["sha256"] = _digest(document, tensors)
    return bytes(save_safetensors(tensors, {_METADATA_KEY: _canonical(document)}))


def from_bytes(
    data: bytes, kind: Kind, name: str = "the data", segments: SegmentFolder | None = None
) -> State:
    """Decode the content of a file. `name` is used in errors, and `segments` has those of the manifest."""
    # Decode tensors and description, and check kind and checksum.
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise CheckpointError(
            f"{name} is truncated or not a safetensors file; expected a residual_rl {kind} ({error})"
        ) from error
    document = _document(data, kind, name)
    version = document["format_version"]
    if document.get("kind") != kind:
        raise CheckpointError(f"{name} is a residual_rl {document.get('kind')}; expected a {kind}")
    if document.pop("sha256", None) != _digest(document, tensors):
        raise CheckpointError(
            f"{name} is damaged: its contents do not match its checksum; expected a residual_rl {kind}"
        )

    # Load the segments, insert tensors and segments into the state, and convert earlier versions.
    try:
        manifest = dict(document.get("segments", {}))
        shared = {key: _load_segment(segments, key, digest) for key, digest in manifest.items()}
    except (CheckpointError, ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} is incomplete: {error}") from error
    try:
        state: State = dict(_unpack(document["state"], tensors, shared))
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error}; expected a complete residual_rl {kind}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged ({error}); expected a residual_rl {kind}") from error
    for step in range(version, FORMAT_VERSION):
        state = MIGRATIONS[step](state, kind)
    return state


def _load_segment(segments: SegmentFolder | None, name: str, sha256: str) -> State:
    if segments is None:
        raise CheckpointError(f"its segment {name} is in a separate file")
    return from_bytes(segments.read(name, sha256), "segment", str(segments.path(name)))


def copy_state(state: State) -> State:
    """A copy of `state` that later training steps do not change. Segments are immutable and shared."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {key: copied(inner) for key, inner in value.items()}
        return [copied(inner) for inner in value] if isinstance(value, list) else value

    return {key: copied(value) for key, value in state.items()}


class CheckpointFolder:
    """The last few checkpoints of a run, as `step_000010240.safetensors`. One process writes, any may read.

    Segments are stored in `replay/` beside the folder. Each is written with the first checkpoint that
    contains it, and removed with the last.
    """

    def __init__(self, folder: Path | str, keep: int = 3):
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self.segments = SegmentFolder(self.folder.parent / FOLDER)
        self._manifest: Manifest = {}
        """Manifest of the state that was saved or loaded last."""
        self._named: dict[int, frozenset[str]] = {}
        """Names of the segments of each kept checkpoint, by step."""

    def save(self, step: int, state: State) -> Path:
        """Write the checkpoint of `step`, then remove all but the newest `keep`. Raises like `save`.

        Checkpoints of later steps exist if the newest one was damaged and training resumed from an earlier
        one. They are renamed to `….abandoned`, so that the checkpoint just written is the newest.
        """
        # Write new segments, then the checkpoint.
        make_folder(self.folder)
        remove_leftovers(self.folder)
        path = self.folder / f"step_{step:09d}.safetensors"
        manifest = self._write_segments(state)
        write_atomically(path, to_bytes(state, "checkpoint", manifest))
        self._manifest = manifest

        # Rename checkpoints of later steps, and remove the oldest.
        files = self.files()
        for later in [s for s in files if s > step]:
            stale = files.pop(later)
            aside = stale.with_name(stale.name + ".abandoned")
            _log.warning(
                "%s has a later step than the checkpoint just written; renaming it to %s", stale, aside.name
            )
            with writing(stale):
                stale.replace(aside)
        for old in sorted(files)[: -self.keep]:
            with writing(files[old]):
                files[old].unlink()

        # Remove segments that no kept checkpoint contains.
        kept = {s: files[s] for s in sorted(files)[-self.keep :]}
        self._named = {
            s: self._named[s] if s in self._named else frozenset(_manifest(p))
            for s, p in kept.items()
            if s != step
        }
        self._named[step] = frozenset(manifest)
        self.segments.keep(frozenset().union(*self._named.values()))
        return path

    def _write_segments(self, state: State) -> Manifest:
        """Write the segments that are not in the previous state or whose file is missing."""
        manifest: Manifest = {}
        for segment in _segments(state):
            sha256 = self._manifest.get(segment.name)
            if sha256 is None or not self.segments.path(segment.name).exists():
                sha256 = self.segments.write(segment.name, to_bytes(segment.contents(), "segment"))
            manifest[segment.name] = sha256
        return manifest

    def files(self) -> dict[int, Path]:
        """The checkpoints by step."""
        paths = self.folder.glob("step_*.safetensors")
        found = ((re.fullmatch(r"step_(\d+)\.safetensors", path.name), path) for path in paths)
        return {int(match.group(1)): path for match, path in found if match}

    def latest(self) -> tuple[int, State] | None:
        """The newest step and its state, or None without checkpoints.

        Falls back from a damaged checkpoint to the previous one, with a warning that names both. Raises
        `CheckpointError` if all are damaged.
        """
        files = sorted(self.files().items(), reverse=True)
        for i, (step, path) in enumerate(files):
            try:
                state = load(path, "checkpoint")
                self._manifest = _manifest(path)
                return step, state
            except CheckpointError as error:
                if i + 1 == len(files):
                    raise CheckpointError(
                        f"no checkpoint in {self.folder} can be loaded; the last of {len(files)}: {error}"
                    ) from error
                _log.warning("%s; FALLING BACK to the previous checkpoint, %s", error, files[i + 1][1])
        return None


def _segments(value: Any) -> Iterator[Segment]:
    """All segments in a state."""
    if isinstance(value, Segment):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _segments(inner)


def _manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; empty if the file is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size) if size < path.stat().st_size else b"{}")
        return dict(parse_json(header["__metadata__"][_METADATA_KEY]).get("segments", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _pack(value: Any, key: str, tensors: dict[str, Tensor], finite: bool, inline: bool) -> Any:
    """Convert `value` to JSON and collect its tensors in `tensors`.

    `key` is the JSON pointer of `value` followed by a slash (empty for the root). Segments are written in
    full if `inline`, otherwise by name.
    """
    # Segments, and floats that JSON cannot represent.
    if isinstance(value, Segment):
        if not inline:
            return {_SEGMENT: value.name}
        value = value.contents()
    if isinstance(value, float) and not finite and not math.isfinite(value):
        value = torch.tensor(value, dtype=torch.float64)  # stored as a tensor

    # Tensors and containers.
    name = key.removesuffix("/")
    if isinstance(value, Tensor):
        if name == "__metadata__":
            raise ConfigError("a state cannot contain a tensor '__metadata__': safetensors reserves this")
        tensors[name] = _plain_tensor(value, name, finite)
        return {_TENSOR: name}
    if isinstance(value, dict):
        for k in value:
            if not isinstance(k, str):
                raise ConfigError(
                    f"key {k!r} in state {name!r} is a {type(k).__name__}; the keys of a state are strings"
                )
        for reserved in (_TENSOR, _SEGMENT):
            if reserved in value:
                raise ConfigError(f"key {reserved!r} in state {name!r} is reserved; choose another")
        return {
            k: _pack(v, f"{key}{k.replace('~', '~0').replace('/', '~1')}/", tensors, finite, inline)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_pack(v, f"{key}{i}/", tensors, finite, inline) for i, v in enumerate(value)]

    # Numbers, strings and None.
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value}: it must not reach a checkpoint")
        return float(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ConfigError(
        f"{name} is a {type(value).__name__}; "
        "a state contains dicts, lists, tensors, numbers, strings, booleans and None"
    )


def _unpack(value: Any, tensors: dict[str, Tensor], segments: dict[str, State]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            # Copy to memory with torch's own alignment: some kernels round differently with another. Each
            # tensor occurs once; a file that names one a thousand times must not fill the memory.
            return tensors.pop(value[_TENSOR]).clone()
        if _SEGMENT in value:
            return segments[value[_SEGMENT]]
        return {k: _unpack(v, tensors, segments) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack(v, tensors, segments) for v in value]
    return value


def _plain_tensor(tensor: Tensor, name: str, finite: bool) -> Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise ConfigError(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}; "
            "a state contains dense tensors of bool, int, uint and float"
        )
    tensor = tensor.detach().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    if finite and tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} contains NaN or infinity: it must not reach a checkpoint")
    return tensor


def _document(data: bytes, kind: Kind, name: str) -> dict[str, Any]:
    """The JSON document under our metadata key.

    A safetensors file begins with the length of the header in 8 little-endian bytes, followed by the header
    as JSON, which `safetensors` has checked before.
    """
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get(_METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{name} is a safetensors file of another program; expected a residual_rl {kind}"
        )
    try:
        document = parse_json(text)
        version = int(document["format_version"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{name} is damaged: its description is unreadable; expected a residual_rl {kind}"
        ) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version}; this release reads up to version {FORMAT_VERSION}: "
            "update residual_rl"
        )
    if any(step not in MIGRATIONS for step in range(version, FORMAT_VERSION)):
        raise CheckpointError(
            f"{name} has format version {version}, which cannot be read; expected {_known_versions()}"
        )
    return document


def _known_versions() -> str:
    return " or ".join(map(str, sorted({*MIGRATIONS, FORMAT_VERSION})))


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the description and of each tensor with its name, dtype and shape."""
    digest = hashlib.sha256(_canonical(document).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

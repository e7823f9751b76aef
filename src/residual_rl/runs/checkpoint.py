"""Checkpoints and exported policies: one safetensors file that holds a nested state, without pickle.

Tensors lie under their path in the state (RFC 6901 JSON pointer without the leading slash: keys joined by "/", with "~" and
"/" inside a key written "~0" and "~1"). Everything else is canonical JSON under the one metadata key `residual_rl`, with the
format version, the kind of file, and a SHA-256 of the contents, so that a flipped bit is seen as well as a missing end.

Segments (`types.Segment`) lie within the file like everything else, but for the checkpoints of a `CheckpointFolder`: there each has a
file of its own (see `segments`), and the state holds its name.
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
from residual_rl.utils.files import make_folder, remove_leftovers, write_atomically, writing

Kind = Literal["checkpoint", "policy", "model", "dump", "segment"]
"""`checkpoint`: all that resuming needs; `policy`: a trained residual; `model`: an imitation policy; `dump`: what led to a failure;
`segment`: a part that checkpoints share."""
FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[State, Kind], State]] = {}
"""From a format version to what makes its state one of the next version."""

_METADATA_KEY = "residual_rl"
_TENSOR = "$tensor"
_SEGMENT = "$segment"
_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
_log = logging.getLogger(__name__)


def save(path: Path | str, state: State, kind: Kind) -> None:
    """Write `state` to `path`, atomically: on any failure an earlier file stays as it was.

    Equal states give identical bytes. Tensors are stored as on the CPU, each with its own memory.
    Raises `NonFiniteError` naming the key of a NaN or infinity, `ConfigError` for what a state cannot hold,
    `WriteError` when the file cannot be written.
    """
    write_atomically(Path(path), to_bytes(state, kind))


def save_dump(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write the tensors that led to a failure, for a post-mortem: as `save` does, but NaN and infinity may be among them.
    `load(path, "dump")` gives them back."""
    save(path, dict(state), "dump")


def load(path: Path | str, kind: Kind) -> State:
    """The state in `path`, tensors on the CPU. Raises `CheckpointError` naming the file and what was expected."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; expected a residual_rl {kind} (.safetensors)") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; expected a residual_rl {kind} (.safetensors)") from error
    return from_bytes(data, kind, str(path), SegmentFolder(path.parent.parent / FOLDER))


def to_bytes(state: State, kind: Kind, manifest: Manifest | None = None) -> bytes:
    """What `save` writes. With a `manifest` segments are named, and have files of their own."""
    if not isinstance(state, dict):
        raise ConfigError(f"a state is a dict, not a {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "", tensors, kind != "dump", manifest is None)
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": kind, "state": packed}
    if manifest:
        document["segments"] = manifest
    document["sha256"] = _digest(document, tensors)
    return bytes(save_safetensors(tensors, {_METADATA_KEY: _canonical(document)}))


def from_bytes(data: bytes, kind: Kind, name: str = "the data", segments: SegmentFolder | None = None) -> State:
    """What `load` reads; `name` is what errors call it, and `segments` are those that its manifest names."""
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise CheckpointError(f"{name} is truncated or no safetensors file; expected a residual_rl {kind} ({error})") from error
    document = _document(data, kind, name)
    version = document["format_version"]
    if document.get("kind") != kind:
        raise CheckpointError(f"{name} is a residual_rl {document.get('kind')}; expected a {kind}")
    if document.pop("sha256", None) != _digest(document, tensors):
        raise CheckpointError(f"{name} is damaged: its contents do not match its checksum; expected a residual_rl {kind}")
    try:
        shared = {key: _load_segment(segments, key, digest) for key, digest in document.get("segments", {}).items()}
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{name} is not whole: {error}") from error
    try:
        state: State = _unpack(document["state"], tensors, shared)
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error}; expected a whole residual_rl {kind}") from error
    for step in range(version, FORMAT_VERSION):
        state = MIGRATIONS[step](state, kind)
    return state


def _load_segment(segments: SegmentFolder | None, name: str, sha256: str) -> State:
    if segments is None:
        raise CheckpointError(f"its segment {name} lies in another file")
    return from_bytes(segments.read(name, sha256), "segment", str(segments.path(name)))


def copy_state(state: State) -> State:
    """A copy of `state` that later steps do not write into; segments, which nothing writes into, are shared."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {key: copied(inner) for key, inner in value.items()}
        return [copied(inner) for inner in value] if isinstance(value, list) else value

    return {key: copied(value) for key, value in state.items()}


class CheckpointFolder:
    """The last few checkpoints of a run, as `step_000010240.safetensors`. One process writes, any may read.

    The segments of their states are in `replay/` beside the folder, each written with the first checkpoint that holds it, and removed with
    the last.
    """

    def __init__(self, folder: Path | str, keep: int = 3):
        if keep < 1:
            raise ConfigError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder)
        self.keep = keep
        self.segments = SegmentFolder(self.folder.parent / FOLDER)
        self._manifest: Manifest = {}
        """Of the state that was saved or loaded last."""
        self._named: dict[int, frozenset[str]] = {}
        """Segments of the kept checkpoints, by step."""

    def save(self, step: int, state: State) -> Path:
        """Write the checkpoint of `step`, then remove all but the newest `keep`. Raises like `save`.

        Files of later steps are of a future that was left (the newest was damaged, and training went on from an earlier
        one); they are set aside as `….abandoned`, so that the one just written is the newest.
        """
        make_folder(self.folder)
        remove_leftovers(self.folder)
        path = self.folder / f"step_{step:09d}.safetensors"
        manifest = self._write_segments(state)
        write_atomically(path, to_bytes(state, "checkpoint", manifest))
        self._manifest = manifest
        files = self.files()
        for later in [s for s in files if s > step]:
            stale = files.pop(later)
            aside = stale.with_name(stale.name + ".abandoned")
            _log.warning("%s is of a later step than the checkpoint just written; it is now %s", stale, aside.name)
            with writing(stale):
                stale.replace(aside)
        for old in sorted(files)[: -self.keep]:
            with writing(files[old]):
                files[old].unlink()
        kept = {s: files[s] for s in sorted(files)[-self.keep :]}
        self._named = {s: self._named[s] if s in self._named else frozenset(_manifest(p)) for s, p in kept.items() if s != step}
        self._named[step] = frozenset(manifest)
        self.segments.keep(frozenset().union(*self._named.values()))
        return path

    def _write_segments(self, state: State) -> Manifest:
        """Write those that are new: not of the state before this one, or not there any more."""
        manifest: Manifest = {}
        for segment in _segments(state):
            sha256 = self._manifest.get(segment.name)
            if sha256 is None or not self.segments.path(segment.name).exists():
                sha256 = self.segments.write(segment.name, to_bytes(segment.contents(), "segment"))
            manifest[segment.name] = sha256
        return manifest

    def files(self) -> dict[int, Path]:
        """The checkpoints by step."""
        found = ((re.fullmatch(r"step_(\d+)\.safetensors", p.name), p) for p in self.folder.glob("step_*.safetensors"))
        return {int(match.group(1)): path for match, path in found if match}

    def latest(self) -> tuple[int, State] | None:
        """The newest step and its state, or None when there are none.

        A damaged file gives way to the one before it, with a warning that names both. Raises `CheckpointError` when all are damaged.
        """
        files = sorted(self.files().items(), reverse=True)
        for i, (step, path) in enumerate(files):
            try:
                state = load(path, "checkpoint")
                self._manifest = _manifest(path)
                return step, state
            except CheckpointError as error:
                if i + 1 == len(files):
                    raise CheckpointError(f"no checkpoint in {self.folder} can be loaded; the last of {len(files)}: {error}") from error
                _log.warning("%s; FALLING BACK to the checkpoint before it, %s", error, files[i + 1][1])
        return None


def _segments(value: Any) -> Iterator[Segment]:
    """The segments of a state."""
    if isinstance(value, Segment):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _segments(inner)


def _manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; none where it is damaged, and so needs no segments."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size) if size < path.stat().st_size else b"{}")
        return dict(json.loads(header["__metadata__"][_METADATA_KEY]).get("segments", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _pack(value: Any, key: str, tensors: dict[str, Tensor], finite: bool, inline: bool) -> Any:
    """The JSON form of `value`, whose tensors go to `tensors`; `key` is its pointer, with a slash behind it unless it is the root.
    Segments are written out where they are if `inline`, else by their name."""
    if isinstance(value, Segment):
        if not inline:
            return {_SEGMENT: value.name}
        value = value.contents()
    if isinstance(value, float) and not finite and not math.isfinite(value):
        value = torch.tensor(value, dtype=torch.float64)  # JSON has no word for it
    name = key.removesuffix("/")
    if isinstance(value, Tensor):
        if name == "__metadata__":
            raise ConfigError("a state cannot hold a tensor '__metadata__': safetensors keeps that name for itself")
        tensors[name] = _plain_tensor(value, name, finite)
        return {_TENSOR: name}
    if isinstance(value, dict):
        for k in value:
            if not isinstance(k, str):
                raise ConfigError(f"key {k!r} in state {name!r} is a {type(k).__name__}; the keys of a state are strings")
        for reserved in (_TENSOR, _SEGMENT):
            if reserved in value:
                raise ConfigError(f"key {reserved!r} in state {name!r} is kept for the file format; choose another")
        return {k: _pack(v, f"{key}{k.replace('~', '~0').replace('/', '~1')}/", tensors, finite, inline) for k, v in value.items()}
    if isinstance(value, list):
        return [_pack(v, f"{key}{i}/", tensors, finite, inline) for i, v in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value}: it must not reach a checkpoint")
        return float(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ConfigError(f"{name} is a {type(value).__name__}; a state holds dicts, lists, tensors, numbers, strings, booleans and None")


def _unpack(value: Any, tensors: dict[str, Tensor], segments: dict[str, State]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            # memory of torch's own, aligned as torch aligns it: some kernels round differently on other alignments
            return tensors[value[_TENSOR]].clone()
        if _SEGMENT in value:
            return segments[value[_SEGMENT]]
        return {k: _unpack(v, tensors, segments) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpack(v, tensors, segments) for v in value]
    return value


def _plain_tensor(tensor: Tensor, name: str, finite: bool) -> Tensor:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise ConfigError(f"{name} is a {tensor.layout} tensor of {tensor.dtype}; a state holds dense tensors of bool, int, uint and float")
    tensor = tensor.detach().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    if finite and tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} holds NaN or infinity: it must not reach a checkpoint")
    return tensor


def _document(data: bytes, kind: Kind, name: str) -> dict[str, Any]:
    """The JSON under our metadata key in the header: 8 bytes of little-endian length, then JSON (checked by safetensors before)."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get(_METADATA_KEY)
    if text is None:
        raise CheckpointError(f"{name} is a safetensors file of another program; expected a residual_rl {kind}")
    try:
        document = json.loads(text)
        version = int(document["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} is damaged: its description is unreadable; expected a residual_rl {kind}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{name} has format version {version}; this release knows up to {FORMAT_VERSION}: update residual_rl")
    if any(step not in MIGRATIONS for step in range(version, FORMAT_VERSION)):
        raise CheckpointError(f"{name} has format version {version}, which cannot be read; expected {_known_versions()}")
    return document


def _known_versions() -> str:
    return " or ".join(map(str, sorted({*MIGRATIONS, FORMAT_VERSION})))


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the description, and each tensor with its name, dtype and shape."""
    digest = hashlib.sha256(_canonical(document).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

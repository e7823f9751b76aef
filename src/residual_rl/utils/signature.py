"""Keyed hashes that recognise the user's own files.

The key lies in the user's configuration folder and is created on first use. A file whose signature matches
was written by this user, here or on another machine with the same key; of any other file nothing is known.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from residual_rl.utils.files import write_atomically

SIGNATURE_FILE = "signature"
"""Name of the file with the signature of the settings beside it."""
_log = logging.getLogger(__name__)


def key_file() -> Path:
    """`key` in $RESIDUAL_RL_CONFIG_DIR, by default `residual_rl` in $XDG_CONFIG_HOME or ~/.config."""
    own = os.environ.get("RESIDUAL_RL_CONFIG_DIR")
    if own:
        return Path(own) / "key"
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "residual_rl" / "key"


def write_signature(folder: Path, document: Any) -> None:
    """Write the signature of `document`, which a file in `folder` contains, into the folder."""
    signature = sign(document)
    if signature is not None:
        write_atomically(folder / SIGNATURE_FILE, signature + "\n")


def read_signature(folder: Path) -> str | None:
    """The signature in `folder`; None without one."""
    try:
        return (folder / SIGNATURE_FILE).read_text("ascii").strip()
    except (OSError, ValueError):
        return None


def sign(document: Any) -> str | None:
    """The signature of a JSON document; None, with a warning, where no key can be created."""
    try:
        key = _read_key() or _create_key()
    except (OSError, RuntimeError) as error:  # Path.home() raises RuntimeError without a home
        _log.warning("%s cannot be created (%s): this run will not be recognised as yours", key_file(), error)
        return None
    return _digest(key, document)


def digest_of(path: Path, skip: Collection[str] = ()) -> str | None:
    """SHA-256 of the absolute path and of the contents of a file, or of all files in a folder except for its
    subfolders named in `skip`; None if there is none."""
    path = path.absolute()
    digest = hashlib.sha256()
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        files = [file for file in files if not set(file.relative_to(path).parts[:-1]) & set(skip)]
        for file in files:
            digest.update(f"{file}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    except (OSError, ValueError):  # also a text that cannot be a path
        return None
    return digest.hexdigest()


def is_own(document: Any, signature: str | None) -> bool:
    """Whether `signature` is that of `document` under the user's key."""
    try:
        key = _read_key()
    except (OSError, RuntimeError):
        return False
    if key is None or not signature:
        return False
    return hmac.compare_digest(_digest(key, document).encode(), signature.encode())


def _digest(key: bytes, document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _read_key() -> bytes | None:
    try:
        key = key_file().read_bytes()
    except FileNotFoundError:
        return None
    return key if len(key) >= 32 else None


def _create_key() -> bytes:
    path = key_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written under another name first: two processes that start at once must agree on one key.
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temp, path)
        except FileExistsError:
            if _read_key() is None:  # a damaged key is replaced
                os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    key = _read_key()
    if key is None:
        raise OSError(f"{path} is not readable")
    return key

"""Terminal output in any encoding, and words of the command line."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys

_ASCII = str.maketrans(
    {"−": "-", "–": "-", "…": "...", "·": "-", "→": "->", "←": "<-", "×": "x", "÷": "/", "±": "+-", "’": "'"}
)
"""Similar ASCII text for characters of our output."""
_HOME = re.compile(r"(?<![^=,])~[^/=,]*(?=[/,]|$)")
"""`~` or `~user` at the beginning of a word or of a value in it."""


def degrade_output() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, instead of raising an exception.

    A minus sign becomes `-`, a byte of a file name that is not text `\\xff`, and an unknown character `?`.
    """
    codecs.register_error("similar_ascii", _similar_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="similar_ascii")


def expand_home(word: str) -> str:
    """An argument with `~` replaced by the home folder, also in a value after `=`, where shells leave it:
    `--output-dir=~/runs`."""
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), word)


def _similar_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_ASCII)
    return "".join(map(_replacement, text)), error.end


def _replacement(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode
        return f"\\x{code - 0xDC00:02x}"
    return character if code < 0x80 else "?"

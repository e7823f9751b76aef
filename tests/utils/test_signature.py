"""Keyed hashes of the user's own files."""

import hashlib
import hmac
import logging
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from residual_rl.utils.signature import digest_of, is_own, key_file, sign

DOCUMENT = {"task": {"task_modules": ["mine"]}, "base": None}


@pytest.fixture(autouse=True)
def config_home(tmp_path, monkeypatch):
    monkeypatch.delenv("RESIDUAL_RL_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_sign__is_hmac_sha256_of_the_canonical_json():
    signature = sign(DOCUMENT)
    text = b'{"base":null,"task":{"task_modules":["mine"]}}'
    assert signature == hmac.new(key_file().read_bytes(), text, hashlib.sha256).hexdigest()


def test_key_file__is_in_the_folder_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("RESIDUAL_RL_CONFIG_DIR", str(tmp_path / "own"))
    assert key_file() == tmp_path / "own" / "key"


def test_sign__creates_a_private_key_once(config_home):
    first = sign(DOCUMENT)
    assert key_file() == config_home / "residual_rl" / "key"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert len(key_file().read_bytes()) == 32
    assert sign(DOCUMENT) == first
    assert list(key_file().parent.iterdir()) == [key_file()]


def test_is_own__accepts_the_users_signature_whatever_the_order_of_keys():
    signature = sign(DOCUMENT)
    assert is_own(dict(reversed(DOCUMENT.items())), signature)


def test_is_own__rejects_changes_other_keys_and_missing_signatures():
    signature = sign(DOCUMENT)
    assert not is_own({**DOCUMENT, "base": {}}, signature)
    assert not is_own(DOCUMENT, None)
    assert not is_own(DOCUMENT, "")
    assert not is_own(DOCUMENT, "é")
    key_file().write_bytes(bytes(32))
    assert not is_own(DOCUMENT, signature)


def test_is_own__rejects_everything_without_a_key():
    # The hash under an empty key, which anyone can compute.
    forged = hmac.new(b"", b'{"base":null,"task":{"task_modules":["mine"]}}', hashlib.sha256).hexdigest()
    assert not is_own(DOCUMENT, forged)
    key_file().parent.mkdir()
    key_file().write_bytes(b"")
    assert not is_own(DOCUMENT, forged)
    assert sign(DOCUMENT) != forged  # a damaged key is replaced
    assert len(key_file().read_bytes()) == 32


def test_digest_of__covers_the_path_and_the_contents(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.zip").write_bytes(b"mine")
    first = digest_of(tmp_path / "a" / "model.zip")
    folder = digest_of(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert digest_of(Path("a/model.zip")) == first
    shutil.copytree("a", "b")
    assert digest_of(tmp_path / "b" / "model.zip") != first
    (tmp_path / "a" / "model.zip").write_bytes(b"evil")
    assert digest_of(tmp_path / "a" / "model.zip") != first
    assert digest_of(tmp_path / "a") != folder
    assert digest_of(tmp_path / "gone") is None
    assert digest_of(Path("x" * 5000)) is None
    assert digest_of(Path("x\0")) is None


def test_sign__processes_that_start_at_once_agree_on_one_key():
    with ThreadPoolExecutor(16) as pool:
        signatures = list(pool.map(sign, [DOCUMENT] * 64))
    assert len(set(signatures)) == 1


def test_sign__without_a_place_for_the_key_warns(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert sign(DOCUMENT) is None
    assert "will not be recognised as yours" in caplog.text

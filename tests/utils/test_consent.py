"""Consent to sensitive settings of other people's files."""

import dataclasses
from pathlib import Path

import pytest

from residual_rl.errors import ConfigError
from residual_rl.utils.consent import (
    ConsentError,
    check_consent,
    consenting,
    reading_nested_file,
    take_confirmations,
    with_typed_values,
)
from residual_rl.utils.sensitive import Address, CodeName, CodeNames, Trust

FILE = Path("gift/config.json")


@dataclasses.dataclass(frozen=True)
class Cfg:
    switch: CodeName = ""
    host: Address = ""
    modules: CodeNames = ()
    trusted: Trust = False


def test_check_consent__accepts_empty_values_and_the_users_own_files():
    check_consent(Cfg(), FILE, own=False, path="base")
    check_consent(Cfg(switch="m:f", modules=("a",)), FILE, own=True, path="base")


def test_check_consent__names_the_fields_and_prints_the_whole_command():
    cfg = Cfg(switch="m:f", modules=("a", "b c"))
    with consenting(command=["residual-rl", "eval", "a run"]), pytest.raises(ConsentError) as error:
        check_consent(cfg, FILE, own=False, path="base")
    assert str(error.value) == (
        "gift/config.json is not known to be yours, and its settings include base.switch ('m:f'), which "
        "names code to import; base.modules ('a', 'b c'), which names code to import. "
        "If you know what that is and trust it, repeat it on the command line: residual-rl eval 'a run' "
        "--confirm base.switch=m:f --confirm base.modules=a --confirm 'base.modules=b c'"
    )


def test_check_consent__accepts_values_confirmed_by_pairs_and_no_others():
    with consenting("base.switch=m:f"):
        check_consent(Cfg(switch="m:f"), FILE, own=False, path="base")
        with pytest.raises(ConsentError, match="m:other"):
            check_consent(Cfg(switch="m:other"), FILE, own=False, path="base")
        with pytest.raises(ConsentError, match=r"task\.switch"):
            check_consent(Cfg(switch="m:f"), FILE, own=False, path="task")
    with pytest.raises(ConsentError):
        check_consent(Cfg(switch="m:f"), FILE, own=False, path="base")


@pytest.mark.parametrize(
    "words", [["--base.switch", "m:f"], ["--base.switch=m:f"], ["--base.switch", "m:f", "--plot"]]
)
def test_check_consent__accepts_values_that_the_fields_own_flag_repeats(words):
    with consenting(command=["residual-rl", "eval", "run", *words]):
        check_consent(Cfg(switch="m:f"), FILE, own=False, path="base")
        with reading_nested_file(), pytest.raises(ConsentError):
            check_consent(Cfg(switch="m:f"), FILE, own=False, path="base")


def test_check_consent__a_word_of_another_flag_is_no_consent():
    command = ["residual-rl", "eval", "m:f", "--switch", "m:f", "--task.switch", "m:f"]
    with consenting(command=command), pytest.raises(ConsentError):
        check_consent(Cfg(switch="m:f"), FILE, own=False, path="base")


def test_check_consent__escapes_control_characters_of_the_file():
    with pytest.raises(ConsentError) as error:
        check_consent(Cfg(switch="\x1b[2Jm:f\n"), FILE, own=False)
    assert str(error.value).isprintable()


def test_with_typed_values__the_flags_value_replaces_the_files():
    data = {"switch": "evil:f", "host": "10.0.0.7", "modules": ["evil"], "trusted": True}
    command = ["residual-rl", "eval", "run", "--base.host", "127.0.0.1", "--base.modules", "a", "b"]
    with consenting(command=command):
        assert with_typed_values(Cfg, data, "base") == {
            "switch": "evil:f",
            "host": "127.0.0.1",
            "modules": ["a", "b"],
            "trusted": True,
        }


def test_take_confirmations__separates_the_pairs_from_the_other_arguments():
    argv = ["run", "--confirm", "base.switch=m:f", "--plot", "--confirm=base.host=10.0.0.7"]
    assert take_confirmations(argv) == (["run", "--plot"], ["base.switch=m:f", "base.host=10.0.0.7"])


@pytest.mark.parametrize("words", [["--confirm"], ["--confirm", "base.switch"], ["--confirm", "=m:f"]])
def test_take_confirmations__a_flag_without_a_pair_is_an_error(words):
    with pytest.raises(ConfigError, match="must be FIELD=VALUE"):
        take_confirmations(["run", *words])

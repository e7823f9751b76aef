"""Fields that a file alone may not fill: how they are declared and found."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from residual_rl.utils.sensitive import (
    Address,
    CodeName,
    CodeNames,
    HubName,
    Sensitive,
    Trust,
    sensitive_fields,
    sensitive_values,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    goals: CodeName = ""


@dataclasses.dataclass(frozen=True)
class Cfg:
    switch: CodeName = ""
    host: Annotated[Address | None, tyro.conf.arg(aliases=["--server-host"])] = None
    port: Annotated[int, Sensitive("address")] = 8000
    modules: CodeNames = ()
    trusted: Trust = False
    checkpoint: HubName = ""
    damping: float = 0.1
    inner: Inner = Inner()


def test_sensitive_fields__are_those_annotated_with_their_kinds_and_aliases():
    fields = sensitive_fields(Cfg)
    assert {name: mark.kind for name, mark in fields.items()} == {
        "switch": "code",
        "host": "address",
        "port": "address",
        "modules": "code",
        "trusted": "trust",
        "checkpoint": "address",
    }
    assert fields["host"].aliases == ("server_host",)
    assert fields["switch"].aliases == ()


def test_sensitive_values__empty_values_need_no_consent():
    assert [value.path for value in sensitive_values(Cfg(), "base")] == ["base.port"]


def test_sensitive_values__have_path_kind_and_text():
    found = sensitive_values(Cfg(host="10.0.0.7", modules=("a", "b"), inner=Inner("m:Goals")), "base")
    assert [(value.path, value.kind, value.values) for value in found] == [
        ("base.host", "address", ("10.0.0.7",)),
        ("base.port", "address", ("8000",)),
        ("base.modules", "code", ("a", "b")),
        ("base.inner.goals", "code", ("m:Goals",)),
    ]


def test_sensitive_values__include_settings_that_are_stored_as_text():
    @dataclasses.dataclass(frozen=True)
    class Blend:
        settings: tuple[str, ...] = ("0.goals=m:Goals",)

        def nested_settings(self):
            return {"settings.0": Inner("m:Goals")}

    (found,) = sensitive_values(Blend(), "base")
    assert (found.path, found.values) == ("base.settings.0.goals", ("m:Goals",))


@pytest.mark.parametrize(("checkpoint", "needs_consent"), [("someone/policy", True), ("here", False)])
def test_hub_name__needs_consent_unless_it_is_a_local_path(checkpoint, needs_consent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    paths = [value.path for value in sensitive_values(Cfg(checkpoint=checkpoint))]
    assert ("checkpoint" in paths) == needs_consent

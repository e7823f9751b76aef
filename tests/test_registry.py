"""Tasks, base policies and learners by id: duplicates, unknown ids, and those of other packages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from residual_rl import registry
from residual_rl.errors import ConfigError, ResidualRLError, UnknownNameError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS, BasePolicySpec, Registry, TaskSpec, load


def spec(id: str) -> BasePolicySpec:
    return BasePolicySpec(
        id=id, summary=f"the policy {id}", make="residual_rl.base_policies.zero_policy:make"
    )


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[BasePolicySpec]]:
    """An empty registry whose package registers nothing, so that it finds only entry points."""
    empty: Registry[BasePolicySpec] = Registry("base policy", "residual_rl.cli")
    monkeypatch.setattr(registry, "BASE_POLICIES", empty)
    before = set(sys.modules)
    yield empty
    for name in set(sys.modules) - before:
        if name.startswith("third_party"):
            del sys.modules[name]


def install(folder: Path, name: str, code: str, attribute: str = "", group: str = "residual_rl.cli") -> None:
    """Write a package as pip installs it: a module and its dist-info."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {name}{attribute}\n")


REGISTERS = """
from residual_rl import registry
registry.BASE_POLICIES.register(registry.BasePolicySpec("wave", "waves", "third_party_good:make"))
def make(cfg, env): return "made"
"""


def test_registry_register__duplicate_id_is_an_error(fresh: Registry[BasePolicySpec]) -> None:
    first = fresh.register(spec("a"))
    with pytest.raises(ConfigError, match="base policy 'a' is registered already"):
        fresh.register(spec("a"))
    assert fresh.get("a") is first


def test_registry_get__unknown_id_lists_the_known_ones_nearest_first(fresh: Registry[BasePolicySpec]) -> None:
    for id in ("jacobian", "zero", "act"):
        fresh.register(spec(id))
    with pytest.raises(UnknownNameError) as caught:
        fresh.get("jacobain")
    assert (
        str(caught.value)
        == "unknown base policy 'jacobain'; did you mean 'jacobian'?; known: act, jacobian, zero"
    )
    with pytest.raises(UnknownNameError) as caught:
        fresh.get("qqq")
    assert str(caught.value) == "unknown base policy 'qqq'; known: act, jacobian, zero"


def test_registry_all__is_sorted_by_id(fresh: Registry[BasePolicySpec]) -> None:
    for id in ("c", "a", "b"):
        fresh.register(spec(id))
    assert [s.id for s in fresh.all()] == ["a", "b", "c"]


def test_registry_all__contains_the_tasks_and_base_policies_of_the_package() -> None:
    assert {"so101-paper", "so101-paper-precise"} <= {task.id for task in TASKS.all()}
    assert {"jacobian", "zero"} <= {policy.id for policy in BASE_POLICIES.all()}
    for task in TASKS.all():
        assert BASE_POLICIES.get(task.base_policy)
        assert task.summary
        assert callable(load(task.make))
        for reference in (task.doctor,):
            assert reference is None or callable(load(reference))
        if task.oracle is not None:
            assert BASE_POLICIES.get(task.oracle)
    assert TASKS.get("so101-paper").default_config().tolerance == 0.02
    assert TASKS.get("so101-paper-precise").default_config().tolerance == 0.005
    assert BASE_POLICIES.get("zero").default_config() is None


# --- other packages -----------------------------------------------------------------------------------------


def test_registry__entry_points_add_specs(
    fresh: Registry[BasePolicySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "third_party_good", REGISTERS)
    monkeypatch.syspath_prepend(tmp_path)
    assert fresh.get("wave").summary == "waves"
    assert [s.id for s in fresh.all()] == ["wave"]
    assert load(fresh.get("wave").make)(None, None) == "made"


@pytest.mark.parametrize(
    ("code", "attribute", "reason"),
    [
        (
            "import a_library_that_is_not_there",
            "",
            "ModuleNotFoundError: No module named 'a_library_that_is_not_there'",
        ),
        ("raise RuntimeError('no licence')", "", "RuntimeError: no licence"),
        ("x = 1", ":y", "AttributeError: module 'third_party_bad' has no attribute 'y'"),
        ("def broken(:", "", "SyntaxError"),
        (REGISTERS + REGISTERS, "", "base policy 'wave' is registered already"),
    ],
)
def test_registry__broken_entry_point_is_an_error_with_package_and_reason(
    fresh: Registry[BasePolicySpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    attribute: str,
    reason: str,
) -> None:
    install(tmp_path, "third_party_bad", code, attribute)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # the second time with the same message
        with pytest.raises(ConfigError) as caught:
            fresh.get("wave2")
        message = str(caught.value)
        assert message.startswith(
            f"entry point 'mine' (third_party_bad{attribute}) of third_party_bad failed: "
        )
        assert reason in message
        assert "uninstall" in message
        assert "\n" not in message


@pytest.mark.slow
def test_list__shows_external_specs_and_names_a_broken_package(tmp_path: Path) -> None:
    """In a separate process, with the real entry point groups."""
    task = REGISTERS.replace("third_party_good", "third_party_plugin")
    install(tmp_path, "third_party_plugin", task, group="residual_rl.base_policies")
    done = residual_rl(tmp_path, "list")
    assert done.returncode == 0
    assert "wave" in done.stdout
    assert "jacobian" in done.stdout
    (tmp_path / "third_party_plugin.py").write_text("1 / 0")
    done = residual_rl(tmp_path, "list")
    assert done.returncode == 2
    assert (
        done.stderr
        == "residual-rl: error: entry point 'mine' (third_party_plugin) of third_party_plugin failed: "
        "ZeroDivisionError: division by zero; fix or uninstall that package\n"
    )


def residual_rl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from residual_rl.cli.main import main;"
        f" sys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_load__missing_attribute_is_an_error() -> None:
    for reference, reason in (
        ("no_such_module_here:make", "No module named 'no_such_module_here'"),
        ("residual_rl.base_policies.zero:nope", "has no attribute 'nope'"),
    ):
        with pytest.raises(ResidualRLError) as caught:
            load(reference)
        assert reference in str(caught.value)
        assert reason in str(caught.value)


def test_register_task__needs_only_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: Registry[TaskSpec] = Registry("task", "residual_rl.tasks")
    monkeypatch.setattr(registry, "TASKS", tasks)
    mine = TaskSpec(
        "mine",
        "my task",
        "residual_rl.tasks.so101_paper.config:SO101PaperCfg",
        "x:make",
        "zero",
        {"tolerance": 0.03},
    )
    assert registry.register_task(mine) is mine
    assert tasks.get("mine").default_config().tolerance == 0.03


# --- learners -----------------------------------------------------------------------------------------------


def test_learners__references_of_their_specs_exist() -> None:
    assert "ppo" in {learner.id for learner in LEARNERS.all()}
    for learner in LEARNERS.all():
        assert learner.summary
        assert callable(load(learner.make))
        assert callable(load(learner.make_policy))
        names = {field.name for field in dataclasses.fields(learner.default_config())}
        assert set(learner.quick_overrides) <= names
    for task in TASKS.all():
        assert LEARNERS.get(task.learner)


def test_learners__listing_them_does_not_import_torch() -> None:
    code = (
        "import sys; from residual_rl.registry import LEARNERS; print([s.id for s in LEARNERS.all()], 'torch'"
        " in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gated-sac', 'policy-decorator', 'ppo', 'sac', 'td3'] False"

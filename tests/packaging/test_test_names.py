"""A test's name begins with the identifier under test: `test_<identifier>__<statement>`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST_NAME = re.compile(r"test_([a-z0-9_]*?[a-z0-9])__([a-z0-9][a-z0-9_]*)")


def normalised(identifier: str) -> str:
    """`ResidualEnv`, `residual_env` and `residual-env` are one identifier in a test's name."""
    return identifier.lower().replace("_", "").replace("-", "").replace(".", "")


def identifiers() -> set[str]:
    """Names of modules, classes, functions, fields and registered ids in the project, normalised."""
    found = {"readme", "changelog", "ruff", "docstrings", "comments", "prose", "names"}
    for folder in ("src", "scripts", "benchmarks", "examples", "docs", "tests"):
        for path in (ROOT / folder).rglob("*"):
            found.add(normalised(path.stem.removeprefix("test_")))
            if path.suffix == ".py":
                found |= names_in(ast.parse(path.read_text("utf-8")))
    return found


def names_in(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("test_"):
            found.add(normalised(node.name))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(normalised(node.id))
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            found.add(normalised(node.arg))
        # Ids of tasks, base policies and commands are short strings.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) <= 40:
            found.add(normalised(node.value))
    return found


def is_known(name: str, known: set[str]) -> bool:
    """Whether `name` is one identifier, or a chain of them such as `actor_ema_update`."""
    if normalised(name) in known:
        return True
    words = name.split("_")
    splits = (("_".join(words[:i]), "_".join(words[i:])) for i in range(1, len(words)))
    return any(normalised(head) in known and is_known(tail, known) for head, tail in splits)


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


@pytest.mark.slow
def test_names__begin_with_an_identifier_of_the_project():
    known = identifiers()
    wrong = []
    for path in files_of_tests():
        for name in functions_of(path):
            match = TEST_NAME.fullmatch(name)
            if match is None or not is_known(match[1], known):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong, f"{len(wrong)} tests without an identifier:\n" + "\n".join(wrong)

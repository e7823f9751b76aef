"""Readability of the package, measured: docstrings, sizes of modules, comments in long functions.

A failed test lists what has to be changed. To print all measurements, run this file as a script.
"""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "residual_rl"
MODULES = sorted(PACKAGE.rglob("*.py"))

MIN_DOCSTRINGS = 0.95
"""Fraction of public classes, functions and methods with a docstring."""
MAX_LINES = 400
MAX_MEDIAN_LINES = 200
MAX_ROOT_MODULES = 14
MIN_COMMENTS = 15.0
"""Comments per thousand lines, over the package."""
LONG_BODY = 40
"""Lines of a function's body, without its docstring, from which it needs comments at its steps."""
LINES_PER_COMMENT = 25
"""Lines of a long body for each comment that it needs."""

EXTERNAL = {
    "Module": {"forward"},
    "Env": {"reset", "step", "render", "close"},
    "VectorEnv": {"reset", "step", "render", "close", "close_extras"},
}
"""Documented methods of classes of PyTorch and Gymnasium."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def comment_lines(source: str) -> set[int]:
    """Numbers of the lines with a comment, other than directives for tools."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    directives = ("# noqa", "# type:", "# fmt:", "# pragma:", "#!")
    return {token.start[0] for token in comments if not token.string.startswith(directives)}


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public classes, functions and methods of a module or class, without overloads and setters."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if any(ast.unparse(d).split(".")[-1] in ("overload", "setter") for d in node.decorator_list):
            continue
        yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body, f"{prefix}{node.name}.")


def documented_methods(sources: Iterable[str]) -> dict[str, tuple[list[str], set[str]]]:
    """For each class by name: the names of its bases, and of its methods with a docstring."""
    classes = {name: ([], methods) for name, methods in EXTERNAL.items()}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
                methods = {
                    item.name for item in node.body if isinstance(item, Function) and ast.get_docstring(item)
                }
                classes[node.name] = (bases, methods)
    return classes


def is_inherited(cls: str, method: str, classes: dict[str, tuple[list[str], set[str]]]) -> bool:
    """Whether a base of the class documents the method, as `inspect.getdoc` would find."""
    bases = classes.get(cls, ([], set()))[0]
    return any(
        method in classes.get(base, ([], set()))[1] or is_inherited(base, method, classes) for base in bases
    )


def without_docstring(source: str, classes: dict[str, tuple[list[str], set[str]]]) -> tuple[list[str], int]:
    """Names of public definitions without own or inherited docstring, and the number of all definitions."""
    found = list(public_definitions(ast.parse(source).body))
    missing = [name for name, node in found if not ast.get_docstring(node)]
    return [
        name for name in missing if "." not in name or not is_inherited(*name.split(".")[-2:], classes)
    ], len(found)


def uncommented_functions(source: str) -> list[str]:
    """Functions of more than `LONG_BODY` lines with too few comments at the steps of their body."""
    comments = comment_lines(source)
    offenders = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Function):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body:
            continue
        # From the line after the docstring or signature to the end.
        signature = [
            node.lineno,
            *(item.end_lineno or 0 for item in ast.walk(node.args) if isinstance(item, ast.arg)),
        ]
        first = (node.body[0].end_lineno or 0) + 1 if body is not node.body else max(signature) + 1
        last = node.end_lineno or 0
        lines = last - first + 1
        count = sum(first <= line <= last for line in comments)
        if lines > LONG_BODY and count < lines / LINES_PER_COMMENT:
            offenders.append(f"{node.name} (line {node.lineno}): {lines} lines, {count} comments")
    return offenders


SOURCES = {relative(path): path.read_text(encoding="utf-8") for path in MODULES}
CLASSES = documented_methods(SOURCES.values())
NUM_LINES = {name: len(source.splitlines()) for name, source in SOURCES.items()}


def test_docstrings__nearly_all_public_definitions_have_one() -> None:
    missing = [
        f"{name}: {item}"
        for name, source in SOURCES.items()
        for item in without_docstring(source, CLASSES)[0]
    ]
    total = sum(without_docstring(source, CLASSES)[1] for source in SOURCES.values())
    assert total > 500
    assert len(missing) <= (1 - MIN_DOCSTRINGS) * total, "\n".join(missing)


def test_num_lines__modules_are_short() -> None:
    assert {name: lines for name, lines in NUM_LINES.items() if lines > MAX_LINES} == {}
    assert statistics.median(NUM_LINES.values()) <= MAX_MEDIAN_LINES


def test_root__has_few_modules() -> None:
    root = [name for name in SOURCES if "/" not in name and name != "__init__.py"]
    assert len(root) <= MAX_ROOT_MODULES, root


def test_comments__enough_over_the_package() -> None:
    comments = sum(len(comment_lines(source)) for source in SOURCES.values())
    assert 1000 * comments / sum(NUM_LINES.values()) >= MIN_COMMENTS


def test_comments__long_functions_have_them_at_their_steps() -> None:
    offenders = [
        f"{name}: {item}" for name, source in SOURCES.items() for item in uncommented_functions(source)
    ]
    assert not offenders, "\n".join(offenders)


def test_uncommented_functions__finds_a_long_function_without_comments() -> None:
    lines = [f"    x = {i}" for i in range(50)]
    assert uncommented_functions("\n".join(["def f():", *lines])) == ["f (line 1): 50 lines, 0 comments"]
    once = ["def f():", "    # start", *lines]
    assert uncommented_functions("\n".join(once)) == ["f (line 1): 51 lines, 1 comments"]
    thrice = [
        "def f():",
        "    # start",
        *lines[:20],
        "    # continue",
        *lines[20:40],
        "    # end",
        *lines[40:],
    ]
    assert uncommented_functions("\n".join(thrice)) == []


def test_without_docstring__finds_public_definitions_only() -> None:
    source = 'class A:\n    """Doc."""\n    def f(self): ...\n    def _g(self): ...\ndef _h(): ...\n'
    assert without_docstring(source, documented_methods([source])) == (["A.f"], 2)


def test_without_docstring__counts_inherited_docstrings() -> None:
    source = (
        'class A:\n    """Doc."""\n    def f(self):\n        """Doc."""\n'
        'class B(A):\n    """Doc."""\n    def f(self): ...\n    def g(self): ...\n'
    )
    assert without_docstring(source, documented_methods([source])) == (["B.g"], 5)


def report() -> None:
    """Print all measurements and offenders."""
    missing = [
        f"{name}: {item}"
        for name, source in SOURCES.items()
        for item in without_docstring(source, CLASSES)[0]
    ]
    total = sum(without_docstring(source, CLASSES)[1] for source in SOURCES.values())
    comments = sum(len(comment_lines(source)) for source in SOURCES.values())
    print(
        f"public docstrings: {100 * (1 - len(missing) / total):.1f} % of {total}; without:",
        *missing,
        sep="\n  ",
    )
    print(f"modules: {len(SOURCES)}, median {statistics.median(NUM_LINES.values())} lines")
    print("too long:", {name: lines for name, lines in NUM_LINES.items() if lines > MAX_LINES})
    print("at the root:", sum("/" not in name for name in SOURCES))
    print(f"comments per thousand lines: {1000 * comments / sum(NUM_LINES.values()):.1f}")
    for name, source in SOURCES.items():
        for item in uncommented_functions(source):
            print(f"  {name}: {item}")


if __name__ == "__main__":
    report()

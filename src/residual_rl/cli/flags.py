"""Command-line flags from dataclasses, built by one function for all commands."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from residual_rl.cli.foreign_names import describe_foreign_flags
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.registry import TASKS
from residual_rl.utils.artifacts import PREFIX, Artifact, fetch_artifact
from residual_rl.utils.validation import describe_bounds

HELP = {"-h", "--help"}
ROBOT = "--robot."
"""Prefix of the flags that LeRobot parses."""
PREFIXED = ("base", "imitate")
"""Groups whose flags always have the group's name as a prefix."""
T = TypeVar("T")


# --- arguments that are read first --------------------------------------------------------------------------


def require_target(argv: Sequence[str], command: str, target: str, purpose: str) -> tuple[str, list[str]]:
    """The first argument and the rest. Without one, `--help` prints a short help and ends the process.

    Args:
        argv: the arguments of the command.
        command: its name.
        target: its first argument in usage lines, e.g. `TASK`.
        purpose: its description in a few words.

    Raises:
        ConfigError: the first argument is missing or is a flag.
    """
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    usage = f"residual-rl {command} {target}"
    if HELP & set(argv):
        text = f"{purpose}: {usage} [options]   ({usage} --help lists all options)."
        parse_flags({}, ["--help"], command, text)
    # without a target, and without --help: name the missing argument
    kind = target
    for word, meaning in (
        ("TASK", "a task id"),
        ("RUN", "a run folder"),
        ("DEMOS", "a file of demonstrations"),
        ("|", " or "),
    ):
        kind = kind.replace(word, meaning)
    raise ConfigError(
        f"{command} needs {kind}: put it first, {usage} [options]; `residual-rl list` shows the tasks"
    )


def split_flags(argv: Sequence[str], prefix: str) -> tuple[list[str], list[str]]:
    """The flags that begin with `prefix`, with their values, and the other arguments."""
    theirs: list[str] = []
    others: list[str] = []
    takes_value = False
    for word in argv:
        if word.startswith(prefix):
            theirs.append(word)
            takes_value = "=" not in word
        elif takes_value:
            theirs.append(word)
            takes_value = False
        else:
            others.append(word)
    return theirs, others


def has_flag(argv: Sequence[str], name: str) -> bool:
    """Whether a flag is among the arguments, with a value or without."""
    return any(word.partition("=")[0].replace("_", "-") == name for word in argv)


def is_given(argv: Sequence[str], cls: type, field: str) -> bool:
    """Whether the flag of a dataclass's field is among the arguments, by its name or an alias."""
    return any(has_flag(argv, f"--{name}") for name in _flag_names(cls, field))


def _flag_names(cls: type, field: str) -> list[str]:
    """The name of a field's flag and its aliases, without dashes in front."""
    aliases = aliases_of(typing.get_type_hints(cls, include_extras=True)[field])
    return [name.lstrip("-").replace("_", "-") for name in (field, *aliases)]


def aliases_of(annotation: Any) -> list[str]:
    """Aliases of the flag of a field with this annotation."""
    found = getattr(annotation, "__metadata__", ())
    return [alias for item in found for alias in getattr(item, "aliases", None) or ()]


# --- the builder --------------------------------------------------------------------------------------------


def resume_folder(argv: Sequence[str], command: str) -> str | None:
    """The value of `--resume` in the arguments; None without the flag. Raises `ConfigError` if the folder
    is missing."""
    # both spellings: --resume FOLDER and --resume=FOLDER
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag == "--resume" and HELP.isdisjoint(argv):
            folder = value if equals else next(iter(argv[i + 1 :]), "")
            if not folder or (not equals and folder.startswith("-")):
                raise ConfigError(f"--resume needs a run folder: residual-rl {command} --resume RUN")
            return folder
    return None


class _Flags:
    """Root type passed to tyro; its fields are those of all groups of a command."""


def parse_flags(
    groups: Mapping[str, Any], argv: Sequence[str], command: str, description: str
) -> dict[str, Any]:
    """The groups with the values that the arguments give.

    The fields of all groups are flags of one command line, under their own names. Those of `base` and
    `imitate` have the group as a prefix, e.g. `--base.damping`. A field with the same name as one of an
    earlier group has its group as a prefix too, e.g. `--task.num-envs`. `--help` prints the help, with the
    bounds of each field after its description, and ends the process.

    Args:
        groups: dataclass instances with the defaults, by group; None for a group without settings. With a
            dataclass in place of an instance, fields without a default are required.
        argv: the arguments.
        command: the command with its target, e.g. `train so101-paper`, for the usage line.
        description: one sentence for the help.
    """
    return _parse(groups, argv, command, description=description)[0]


def parse_head(default: T, argv: Sequence[str], command: str, group: str = "own") -> T:
    """The flags of the dataclass `default`, on whose values the other flags of `command` depend; other
    arguments are ignored."""
    values: T = _parse({group: default}, argv, command, return_unknown_args=True, add_help=False)[0][group]
    return values


def parse_known(default: T, argv: Sequence[str], command: str, description: str) -> tuple[T, list[str]]:
    """The flags of the dataclass `default`, and the arguments that are not among them; see `parse_flags`."""
    parsed, others = _parse(
        {"own": default}, argv, command, description=description, return_unknown_args=True
    )
    return parsed["own"], others


def _parse(
    groups: Mapping[str, Any], argv: Sequence[str], command: str, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    """The groups with the values of the arguments, and the unknown arguments; `options` go to `tyro.cli`."""
    given = {name: default for name, default in groups.items() if default is not None}
    if not options.get("return_unknown_args") and HELP.isdisjoint(argv):
        foreign = describe_foreign_flags(argv, _known_flags(given))
        if foreign is not None:
            raise ConfigError(foreign)
    # One flat namespace: tyro gets a single struct whose fields are those of all groups. It returns a dict
    # with a key GROUP/FIELD for each.
    registry = ConstructorRegistry()

    @registry.struct_rule
    def all_groups(info: StructTypeInfo) -> StructConstructorSpec | None:
        return StructConstructorSpec(instantiate=dict, fields=_fields(given)) if info.type is _Flags else None

    parsed: Any = tyro.cli(
        _Flags, args=list(argv), prog=f"residual-rl {command}", registry=registry, **options
    )
    values, others = parsed if options.get("return_unknown_args") else (parsed, [])
    values = _fetched(values, given)
    # The dataclasses are created here and not by tyro, so that their ConfigErrors are raised unchanged.
    result: dict[str, Any] = dict.fromkeys(groups)
    for group, default in given.items():
        cls = _class_of(default)
        result[group] = cls(
            **{field.name: values[f"{group}/{field.name}"] for field in dataclasses.fields(cls)}
        )
    return result, list(others)


def _fetched(values: dict[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the folders of downloads in place of the names of artifacts that the user typed.
    Defaults, which may be from a file, are left as they are."""
    fetched = dict(values)
    for group, name, _, annotation in _named_fields(groups):
        value = values[f"{group}/{name}"]
        takes_artifacts = any(isinstance(item, Artifact) for item in getattr(annotation, "__metadata__", ()))
        is_typed = takes_artifacts and value != getattr(groups[group], name, None)
        if is_typed and value.startswith(PREFIX):
            fetched[f"{group}/{name}"] = str(fetch_artifact(value))
    return fetched


def _fields(groups: Mapping[str, Any]) -> tuple[StructFieldSpec, ...]:
    """A tyro field for each field of the groups."""
    fields: list[StructFieldSpec] = []
    docs = {group: field_docs(_class_of(default)) for group, default in groups.items()}
    for group, name, flag, annotation in _named_fields(groups):
        # the help shows the bounds of the value beside its default
        bounds = describe_bounds(annotation)
        hint = functools.partial("({}, default: {})".format, bounds) if bounds else None
        extra = tyro.conf.arg(name=flag, help_behavior_hint=hint)
        fields.append(
            StructFieldSpec(
                name=f"{group}/{name}",
                type=Annotated[annotation, extra],  # type: ignore[arg-type]
                default=getattr(groups[group], name, tyro.MISSING),
                helptext=docs[group].get(name),
            )
        )
    return tuple(fields)


def _named_fields(groups: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Group, name, flag without dashes, and annotation of each field."""
    # flags so far: a later group with the same field name gets its own name as a prefix
    taken: set[str] = set()
    for group, default in groups.items():
        hints = typing.get_type_hints(_class_of(default), include_extras=True)
        for field in dataclasses.fields(_class_of(default)):
            flag = f"{group}.{field.name}" if group in PREFIXED or field.name in taken else field.name
            taken.add(flag)
            yield group, field.name, flag, hints[field.name]


def _class_of(default: Any) -> Any:
    return default if isinstance(default, type) else type(default)


def _known_flags(groups: Mapping[str, Any]) -> set[str]:
    """All flags of the groups, with their aliases and the negations of switches."""
    known: set[str] = set()
    for _, _, flag, annotation in _named_fields(groups):
        for name in (flag, *aliases_of(annotation)):
            prefix, dot, last = name.lstrip("-").replace("_", "-").rpartition(".")
            known |= {f"--{prefix}{dot}{last}", f"--{prefix}{dot}no-{last}"}
    return known


def field_docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, by field; a field without one has that of its base
    class."""
    docs: dict[str, str] = {}
    # base classes first, so that a subclass can replace their texts
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # created at run time: there is no source
            continue
        # a docstring is a string expression directly below its field
        for field, text in itertools.pairwise(typing.cast(ast.ClassDef, definition).body):
            is_docstring = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_docstring:
                name = typing.cast(ast.Name, field.target).id
                docs[name] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return docs


# --- flags from settings ------------------------------------------------------------------------------------


def settings_as_flags(task_id: str, settings: Mapping[str, Any]) -> str:
    """The flags that give a task the plain `settings`, where they differ from its defaults; all of them for
    an unknown task."""
    try:
        default = json.loads(json.dumps(dataclasses.asdict(TASKS.get(task_id).default_config())))
    except UnknownNameError:
        default = {}
    # only values that differ from the default, in the spelling of the command line
    words = []
    for name, value in settings.items():
        if value is None or value == default.get(name):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([f"--{flag}", *map(str, values)]))
    return " ".join(words)

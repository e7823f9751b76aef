"""A sweep trains each point of a grid of settings with several seeds.

The run folder of each trial records its state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from residual_rl.config import PARTS, TrainCfg, from_plain, replace_fields
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.consent import ConsentError, confirmations
from residual_rl.utils.files import parse_json
from residual_rl.utils.seeding import EVAL_SEED
from residual_rl.utils.signature import is_own, read_signature
from residual_rl.utils.validation import (
    CheckedCfg,
    Distinct,
    EpisodeSeed,
    NonNegativeFloat,
    PositiveInt,
    parse_value,
)

State = Literal["waiting", "running", "evaluating", "interrupted", "failed", "finished"]
_NO_GRID = {
    "seed": "the seeds are those of --seeds",
    "learner": "a sweep has one learner, whose settings can be in the grid; run a sweep for each",
    "base_policy": "a sweep has one base policy, whose settings can be in the grid; run a sweep for each",
}
"""Settings that cannot be in a grid, with the reason."""
DEFAULT_POINT = "default"
"""Name of the only point of a sweep without a grid."""
_LONGEST_NAME = 200
"""Largest folder name [bytes]: most file systems allow 255, and Ray and the logs append to it."""


@dataclass(frozen=True)
class SweepCfg(CheckedCfg):
    """Settings of a sweep, stored in its folder as `config.json`."""

    task_id: str
    train: tuple[str, ...] = ()
    """Flags of `residual-rl train` that all trials share."""
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values by setting, as on the command line."""
    seeds: Annotated[tuple[int, ...], Distinct] = (1, 2, 3)
    """Training seeds: each point of the grid is trained with each of them."""
    n_episodes: PositiveInt = 200
    """Number of evaluation episodes of each trained policy; all use the same ones."""
    first_eval_seed: EpisodeSeed = EVAL_SEED
    """Seed of the first evaluation episode."""
    cpus_per_trial: PositiveInt = 1
    """CPU cores of a trial; also its number of simulator threads, unless --num-threads is given."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of a trial; with a fraction, several trials share one."""
    cwd: str = "."
    """Folder that relative paths in the flags refer to."""


@dataclass(frozen=True)
class Trial:
    """One training: a point of the grid with one seed."""

    name: str
    """Name of its run folder."""
    point: str
    """Name of the point, e.g. `residual_scale=0.3,gamma=0.97`."""
    seed: int
    total_steps: int
    """Env steps of its training."""
    train: tuple[str, ...]
    """Arguments of `residual-rl train`, except for the output folder."""
    sweep: Path
    """Folder of the sweep."""
    eval_seeds: tuple[int, int]
    """First seed and number of the evaluation episodes."""
    cpus: int = 1
    confirmations: tuple[str, ...] = ()
    """Settings of other people's files that the user has confirmed, as FIELD=VALUE."""

    @property
    def run(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.sweep / "trials" / self.name)

    @property
    def log(self) -> Path:
        """Output of its processes."""
        return self.sweep / "logs" / f"{self.name}.log"

    @property
    def failure_file(self) -> Path:
        """File with the reason of its failure; exists only if it failed."""
        return self.sweep / "logs" / f"{self.name}.failed"

    def to_json(self) -> str:
        """JSON for `from_json`."""
        return json.dumps({**dataclasses.asdict(self), "sweep": str(self.sweep)})

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """Inverse of `to_json`."""
        data = json.loads(text)
        return cls(
            **{
                **data,
                "train": tuple(data["train"]),
                "confirmations": tuple(data["confirmations"]),
                "sweep": Path(data["sweep"]),
                "eval_seeds": tuple(data["eval_seeds"]),
            }
        )


# --- the grid -----------------------------------------------------------------------------------------------


def parse_grid(entries: Sequence[str], cfg: TrainCfg) -> dict[str, tuple[str, ...]]:
    """The values by setting of `--grid` entries such as `residual_scale=0.1,0.3`.

    All settings of `cfg` except for the seed are allowed, by their name or an alias of their flag. The words
    of a value are separated by blanks. Raises `UnknownNameError` for an unknown name, and `ConfigError` for a
    value of a wrong type. `make_trials` checks combinations of values.
    """
    grid: dict[str, tuple[str, ...]] = {}
    aliases = {
        alias: key
        for part in PARTS
        for key, others in _aliases(getattr(cfg, part)).items()
        for alias in others
    }

    for entry in entries:
        # Split the entry into setting and values.
        key, equals, text = entry.partition("=")
        key, values = (
            key.strip().replace("-", "_"),
            tuple(" ".join(value.split()) for value in text.split(",")),
        )
        if not equals or not all(values) or any(word.startswith("--") for v in values for word in v.split()):
            raise ConfigError(f"--grid {entry!r} is not of the form SETTING=VALUE,VALUE,…")

        # Resolve the setting, and check that its values are valid and distinct.
        key = aliases.get(key, key)
        hint = _setting(key, cfg)[1]
        if key in grid:
            raise ConfigError(f"--grid has {key} twice; give all of its values in one")
        typed = [_value(key, value, hint) for value in values]
        for text, value in zip(values, typed, strict=True):
            if typed.count(value) > 1:
                raise ConfigError(f"--grid {key} has the value {text} twice")
        grid[key] = values
    return grid


def _setting(key: str, cfg: TrainCfg) -> tuple[str, Any]:
    """The part of `cfg` that has the setting `key`, and the type of the setting."""
    if key in _NO_GRID:
        raise ConfigError(f"--grid cannot have {key}: {_NO_GRID[key]}")
    known: dict[str, tuple[str, Any]] = {}
    for name in PARTS:
        part = getattr(cfg, name)
        if part is not None:
            hints = typing.get_type_hints(type(part))
            for setting in dataclasses.fields(part):
                known.setdefault(setting.name, (name, hints[setting.name]))
    if key not in known:
        raise UnknownNameError("setting", key, set(known) - set(_NO_GRID))
    return known[key]


def _aliases(part: Any) -> dict[str, list[str]]:
    """Aliases of the flags of a part, by setting."""
    hints = typing.get_type_hints(type(part), include_extras=True) if part is not None else {}
    found = {
        key: [a for m in getattr(hint, "__metadata__", ()) for a in getattr(m, "aliases", None) or ()]
        for key, hint in hints.items()
    }
    return {
        key: [alias.lstrip("-").replace("-", "_") for alias in names] for key, names in found.items() if names
    }


def _value(key: str, text: str, hint: Any) -> Any:
    """Parse `text` like the command line does for a setting of this type."""
    try:
        return parse_value(hint, text.split())
    except ValueError:
        raise ConfigError(f"--grid {key}={text}: {text!r} is not {_kind(hint)}") from None


def _kind(hint: Any) -> str:
    """Description of a type for messages."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_kind(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"{_kind(typing.get_args(hint)[0])}, or several with blanks between them"
    words = {
        float: "a number",
        int: "a whole number",
        bool: "True or False",
        str: "a word",
        types.NoneType: "None",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


# --- the trials ---------------------------------------------------------------------------------------------


def make_trials(sweep: SweepCfg, cfg: TrainCfg, folder: Path) -> list[Trial]:
    """A trial for each point of the grid and each seed.

    Args:
        sweep: the sweep.
        cfg: the settings of its `train` flags.
        folder: the folder of the sweep.
    """
    trials = []
    for values in itertools.product(*sweep.grid.values()):
        # Apply the values of the point to the settings, which validates their combination.
        texts = dict(zip(sweep.grid, values, strict=True))
        typed = {key: _value(key, text, _setting(key, cfg)[1]) for key, text in texts.items()}
        point = ",".join(f"{key}={text}" for key, text in texts.items()) or DEFAULT_POINT
        try:
            trained = replace_fields(cfg, typed)
        except ConfigError as error:
            raise ConfigError(f"--grid {point}: {error}") from error

        # Write the point as flags of `residual-rl train`.
        flags = [word for key, text in texts.items() for word in _flag(key, text, typed[key], cfg)]
        threads = (
            []
            if _given(sweep.train, "num_threads") or "num_threads" in texts
            else ["--num-threads", str(sweep.cpus_per_trial)]
        )

        # Add one trial for each seed.
        for seed in sweep.seeds:
            trials.append(
                Trial(
                    name=_name(point, seed),
                    point=point,
                    seed=seed,
                    total_steps=trained.run.total_timesteps,
                    train=(sweep.task_id, *sweep.train, *threads, *flags, "--seed", str(seed)),
                    sweep=folder,
                    eval_seeds=(sweep.first_eval_seed, sweep.n_episodes),
                    cpus=sweep.cpus_per_trial,
                    confirmations=confirmations(),
                )
            )
    if len({trial.name for trial in trials}) < len(trials):
        raise ConfigError(
            "two points of the grid would have the same folder: their values differ only in characters that a"
            " folder name cannot have"
        )
    return trials


def _name(point: str, seed: int) -> str:
    """Name of the folder of a trial. A long name is cut, and a digest of the whole point is appended."""
    name = re.sub(r"[^\w.,=+-]+", "x", point)
    end = f",seed={seed}"
    if len((name + end).encode()) > _LONGEST_NAME:
        end = f",{hashlib.sha256(point.encode()).hexdigest()[:8]}{end}"
        name = name.encode()[: _LONGEST_NAME - len(end)].decode(errors="ignore")
    return name + end


def _flag(key: str, text: str, value: Any, cfg: TrainCfg) -> list[str]:
    """The command-line flag of a setting."""
    name = key.replace("_", "-")
    prefix = "base." if _setting(key, cfg)[0] == "base" else ""
    if isinstance(value, bool):
        return [f"--{prefix}{'' if value else 'no-'}{name}"]
    return [f"--{prefix}{name}", *text.split()]


def _given(flags: Sequence[str], key: str) -> bool:
    return any(
        word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") == key for word in flags
    )


def check_train_flags(flags: Sequence[str], grid: Mapping[str, Any], cfg: TrainCfg | None = None) -> None:
    """Raise `ConfigError` if `flags`, those of all trials, contain one that the sweep or its grid sets.

    `cfg` has the parts whose settings are in the grid.
    """
    for key, why in {
        "seed": "give --seeds instead",
        "output_dir": "",
        "resume": "",
        "quick": "a trial is a whole training",
    }.items():
        if _given(flags, key):
            reason = f": {why}" if why else ""
            raise ConfigError(f"--{key.replace('_', '-')} is no flag for the trials of a sweep{reason}")

    # A setting of the grid must not be a flag too, by its name or an alias.
    aliases = {key: others for part in PARTS for key, others in _aliases(getattr(cfg, part, None)).items()}
    for key in grid:
        if any(
            _given(flags, name)
            for name in (key, f"no_{key}", f"base.{key}", f"base.no_{key}", *aliases.get(key, ()))
        ):
            raise ConfigError(f"{key} is in --grid and a flag of all trials; leave out one of them")


# --- their state --------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file does not exist. Raises `CheckpointError`."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); expected JSON") from error
    return data if isinstance(data, dict) else {}


def is_trained(trial: Trial) -> bool:
    """Whether its training is finished."""
    return bool(read_json(trial.run.summary_file).get("finished"))


def is_evaluated(trial: Trial) -> bool:
    """Whether its policy was evaluated on the episodes of the sweep."""
    first, count = trial.eval_seeds
    return read_json(trial.run.eval_file).get("episode_seeds") == list(range(first, first + count))


def state_of(trial: Trial) -> State:
    """State of a trial without a running process, as recorded in its folder."""
    if is_trained(trial) and is_evaluated(trial):
        return "finished"
    if trial.failure_file.exists():
        return "failed"
    return "interrupted" if trial.run.config_file.exists() else "waiting"


def read_sweep(folder: Path) -> SweepCfg:
    """The sweep in `folder`.

    Raises:
        CheckpointError: there is no sweep, or its configuration is damaged.
        ConsentError: somebody else started it. Its arguments are a command line that the user has not typed.
    """
    file = RunFolder(folder).config_file
    data = read_json(file)
    if not data:
        raise CheckpointError(f"{file} does not exist; {folder} contains no sweep to resume")
    try:
        cfg = from_plain(SweepCfg, data)
    except (UnknownNameError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not the configuration of a sweep: {error}") from error
    if not is_own(data, read_signature(folder)):
        raise ConsentError(
            f"{folder} is not known to be yours, and resuming a sweep runs the commands in it; "
            "start one of your own with the settings in its config.json that you want"
        )
    return cfg

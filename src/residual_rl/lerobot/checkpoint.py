"""LeRobot checkpoints: a folder with a policy's settings, weights, and pre- and post-processors.

The files are JSON and safetensors. They may, however, name a class to import, or a folder with code to run.
What is not on the lists in `lerobot.allowed` is read only if the user trusts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.lerobot.allowed import check_policy_type, check_step
from residual_rl.lerobot.support import ACTION, is_hub_id, quiet, require_lerobot
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line

CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
)
PRETRAINED = "pretrained_model"
"""Name of the checkpoint's folder in the output of a training run."""
_SUBFOLDERS = (PRETRAINED, f"checkpoints/last/{PRETRAINED}", ".")
_LARGEST = 1 << 14
"""Largest number in a policy's settings, unless its weights are larger."""
_USER = "the base policy 'lerobot'"


@dataclass(frozen=True)
class LeRobotModel:
    """A policy with its processors."""

    policy: Any
    """A `lerobot.policies.pretrained.PreTrainedPolicy`, in eval mode."""
    preprocessor: Any
    """Converts a batch of features to the policy's inputs."""
    postprocessor: Any
    """Converts the policy's outputs to robot actions."""
    name: str
    """Name of the policy in error messages."""

    @property
    def config(self) -> Any:
        """The policy's settings."""
        return self.policy.config

    def save(self, folder: Path) -> None:
        """Save the policy and its processors to the empty folder `folder`."""
        with quiet():
            self.policy.save_pretrained(folder)
            self.preprocessor.save_pretrained(folder)
            self.postprocessor.save_pretrained(folder)


def find_checkpoint(checkpoint: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, which is downloaded if `checkpoint` is `owner/name` on the hub.

    Raises `CheckpointError` if there is none.
    """
    path = Path(checkpoint)
    if path.is_dir():
        for name in _SUBFOLDERS:
            folder = (path / name).resolve()
            if (folder / CONFIG).is_file():
                return folder
        raise CheckpointError(
            f"{path} has no {CONFIG}; expected the folder of a LeRobot policy, e.g. …/{_SUBFOLDERS[1]}"
        )
    if path.exists():
        raise CheckpointError(f"{path} is not a folder; expected that of a LeRobot policy, with a {CONFIG}")
    if not is_hub_id(checkpoint):
        raise CheckpointError(
            f"{path} does not exist; expected the folder of a LeRobot policy, or OWNER/NAME on the hub"
        )
    return _download(checkpoint, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:
        raise CheckpointError(
            f"{name} is not a local folder, and cannot be downloaded from the hub "
            f"({type(error).__name__}: {_short(error)}); check the name and the network"
        ) from error
    return Path(found)


def load_model(
    checkpoint: str, device: torch.device, revision: str | None = None, trust: bool = False
) -> LeRobotModel:
    """Read a checkpoint.

    Args:
        checkpoint: a folder, or `owner/name` on the Hugging Face hub.
        device: device of the policy.
        revision: revision of the repository on the hub.
        trust: whether the checkpoint may contain what is not on the lists in `lerobot.allowed`.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete or damaged.
        ConfigError: it needs trust, and `trust` is false.
        MissingDependencyError: LeRobot is not installed.
    """
    # Check the files, before anything that they describe is created.
    require_lerobot(_USER)
    folder = find_checkpoint(checkpoint, revision)
    kind = check_policy_type(folder / CONFIG, _read_json(folder, CONFIG).get("type"), trust)
    steps = {name: _read_steps(folder, name, trust) for name in (PREPROCESSOR, POSTPROCESSOR)}
    if not (folder / WEIGHTS).is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
        )
        only = f", only {', '.join(others)}, which cannot be read safely" if others else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS}{only}")

    # Load the policy and its processors. Nothing is downloaded: the checkpoint has all weights.
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    overrides = {
        name: {"device_processor": {"device": str(device)}} if "device_processor" in found else {}
        for name, found in steps.items()
    }
    try:
        _check_sizes(folder)
        with quiet():
            config = PreTrainedConfig.from_pretrained(str(folder), cli_overrides=[f"--device={device}"])
            for unwanted in ("pretrained_backbone_weights", "compile_model"):
                if getattr(config, unwanted, None):
                    setattr(config, unwanted, None)
            policy = get_policy_class(config.type).from_pretrained(str(folder), config=config, strict=True)
            preprocessor, postprocessor = make_pre_post_processors(
                config,
                pretrained_path=str(folder),
                preprocessor_overrides=overrides[PREPROCESSOR],
                postprocessor_overrides=overrides[POSTPROCESSOR],
            )
        model = LeRobotModel(policy.eval().requires_grad_(False), preprocessor, postprocessor, str(folder))
        check_statistics(model)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read as a LeRobot policy of type {kind!r} "
            f"({type(error).__name__}: {_short(error)})"
        ) from error
    return model


def _check_sizes(folder: Path) -> None:
    """Raise `CheckpointError` for settings that ask for a much larger policy than the weights are.

    LeRobot would first allocate it.
    """
    with safe_open(folder / WEIGHTS, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    largest = max([_LARGEST, *(size for shape in shapes for size in shape)])
    for name, value in _read_json(folder, CONFIG).items():
        limit = len(shapes) if name.endswith("_layers") else largest
        sizes = value if isinstance(value, list) else [value]
        is_size = not name.startswith(("optimizer_", "scheduler_"))
        if is_size and any(isinstance(size, int) and size > limit for size in sizes):
            raise CheckpointError(f"{folder / CONFIG}: {name} is {value}, expected at most {limit}")


def check_statistics(model: LeRobotModel) -> None:
    """Raise `CheckpointError` if normalisation statistics are missing or have the wrong size.

    LeRobot itself would pass such features through without normalising them.
    """
    from lerobot.configs.types import NormalizationMode
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    config = model.config
    if config.action_feature is None:
        raise CheckpointError(f"{model.name} is of type {config.type!r}, which does not predict actions")
    for pipeline, kind, wanted in (
        (model.preprocessor, NormalizerProcessorStep, config.input_features),
        (model.postprocessor, UnnormalizerProcessorStep, {ACTION: config.action_feature}),
    ):
        for step in pipeline.steps:
            if not isinstance(step, kind):
                continue
            for name, feature in wanted.items():
                if step.norm_map.get(feature.type, NormalizationMode.IDENTITY) is NormalizationMode.IDENTITY:
                    continue
                statistics = (step.stats or {}).get(name)
                if not statistics:
                    raise CheckpointError(
                        f"{model.name} has no normalisation statistics of {name!r}, without which its "
                        "actions are wrong: save it again with the processors of its training"
                    )
                sizes = {
                    key: torch.as_tensor(value).numel()
                    for key, value in statistics.items()
                    if key in ("mean", "std", "min", "max")
                }
                expected = feature.shape[0]  # for images, the number of channels
                for key, size in sizes.items():
                    if size != expected:
                        raise CheckpointError(
                            f"{model.name}: the {key} of {name!r} has size {size}, "
                            f"but the policy's feature has size {expected}"
                        )


def check_processors(folder: Path) -> None:
    """Check the processors of `folder`, if it has any, before LeRobot creates their steps, which can be any
    class of any module. Raises `ConfigError` and `CheckpointError`."""
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if not (folder / name).exists():
            continue
        try:
            _read_steps(folder, name, trust=False)
        except ConfigError as error:
            raise ConfigError(
                f"{folder / name} has a step that `residual-rl export` does not write: export the policy "
                "again"
            ) from error


def _read_steps(folder: Path, name: str, trust: bool) -> set[str]:
    """The registered names of a processor's steps, which are all checked before any is created."""
    if not (folder / name).is_file():
        raise CheckpointError(
            f"{folder} has no {name}: it is not a LeRobot policy, or from a release before 0.4, which "
            "`python -m lerobot.processor.migrate_policy_normalization` converts"
        )
    names = set()
    steps = _read_json(folder, name).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{folder / name} has no list of steps; expected a LeRobot processor")
    for step in steps:
        check_step(folder / name, step, trust)
        file = step.get("state_file")
        if file is not None and (Path(str(file)).name != file or not (folder / file).is_file()):
            raise CheckpointError(f"{folder} has no {file}, the state of a step of {name}")
        names.add(str(step.get("registry_name")))
    return names


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = parse_json((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / name} cannot be read ({_short(error)}); expected a JSON file written by LeRobot"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{folder / name} does not contain a JSON object; expected a file written by LeRobot"
        )
    return value


def _short(error: Exception) -> str:
    return one_line(error)

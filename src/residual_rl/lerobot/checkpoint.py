"""LeRobot checkpoints: a folder with a policy's settings, its weights, and the pre- and post-processors that it was trained with.

They are JSON and safetensors. But a processor may name a class to import and call, and so run what its maker chose: those are read only
where the user trusts the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from residual_rl.errors import CheckpointError
from residual_rl.lerobot.support import ACTION, is_hub_id, quiet, require_lerobot
from residual_rl.utils import trusted

CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
)
PRETRAINED = "pretrained_model"
"""The folder's name in a training's output."""
_SUBFOLDERS = (PRETRAINED, f"checkpoints/last/{PRETRAINED}", ".")
_USER = "the base policy 'lerobot'"


@dataclass(frozen=True)
class LeRobotModel:
    """A policy with its processors."""

    policy: Any
    """A `lerobot.policies.pretrained.PreTrainedPolicy`, in eval mode."""
    preprocessor: Any
    """From a batch of features to what the policy takes."""
    postprocessor: Any
    """From its actions to those of the robot."""
    name: str
    """How errors call it."""

    @property
    def config(self) -> Any:
        """The policy's settings."""
        return self.policy.config

    def save(self, folder: Path) -> None:
        """Write it into the empty folder `folder`."""
        with quiet():
            self.policy.save_pretrained(folder)
            self.preprocessor.save_pretrained(folder)
            self.postprocessor.save_pretrained(folder)


def find_checkpoint(checkpoint: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: of a folder itself, or what the hub has under that name. Raises `CheckpointError`."""
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
        raise CheckpointError(f"{path} is no folder; expected that of a LeRobot policy, which has a {CONFIG}")
    if not is_hub_id(checkpoint):
        raise CheckpointError(
            f"{path} does not exist; expected the folder of a LeRobot policy, or its name on the hub, owner/name"
        )
    return _download(checkpoint, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"])
    except Exception as error:
        raise CheckpointError(
            f"{name} is no folder here, and the hub does not give it ({type(error).__name__}: {_short(error)}); "
            "check the name and the network"
        ) from error
    return Path(found)


def load_model(
    checkpoint: str, device: torch.device, revision: str | None = None, trust: bool = False
) -> LeRobotModel:
    """Read a checkpoint.

    Args:
        checkpoint: a folder, or `owner/name` on the Hugging Face hub.
        device: where the policy goes.
        revision: of the hub's repository.
        trust: whether processors may name classes to import.

    Raises `CheckpointError` naming what is wrong with it, `ConfigError` where it must be trusted, and `MissingDependencyError`.
    """
    require_lerobot(_USER)
    folder = find_checkpoint(checkpoint, revision)
    steps = {name: _read_steps(folder, name, trust) for name in (PREPROCESSOR, POSTPROCESSOR)}
    if not (folder / WEIGHTS).is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
        )
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}"
            + (f", only {', '.join(others)}, which are not read" if others else "")
        )
    kind = _read_json(folder, CONFIG).get("type")
    if not isinstance(kind, str):
        raise CheckpointError(
            f"{folder / CONFIG} names no type of policy; expected the settings of a LeRobot policy"
        )

    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    overrides = {
        name: {"device_processor": {"device": str(device)}} if "device_processor" in found else {}
        for name, found in steps.items()
    }
    try:
        with quiet():
            config = PreTrainedConfig.from_pretrained(str(folder), cli_overrides=[f"--device={device}"])
            for unwanted in (
                "pretrained_backbone_weights",
                "compile_model",
            ):  # the checkpoint has all weights: nothing is downloaded
                if getattr(config, unwanted, None):
                    setattr(config, unwanted, None)
            policy = get_policy_class(config.type).from_pretrained(str(folder), config=config, strict=True)
            preprocessor, postprocessor = make_pre_post_processors(
                config,
                pretrained_path=str(folder),
                preprocessor_overrides=overrides[PREPROCESSOR],
                postprocessor_overrides=overrides[POSTPROCESSOR],
            )
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read as a LeRobot policy of type {kind!r} ({type(error).__name__}: {_short(error)})"
        ) from error
    model = LeRobotModel(policy.eval().requires_grad_(False), preprocessor, postprocessor, str(folder))
    check_statistics(model)
    return model


def check_statistics(model: LeRobotModel) -> None:
    """Raise `CheckpointError` where what is to be normalised has no statistics, with which LeRobot would pass it through, or others'."""
    from lerobot.configs.types import NormalizationMode
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    config = model.config
    if config.action_feature is None:
        raise CheckpointError(f"{model.name} is of type {config.type!r}, which gives no actions")
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
                        f"{model.name} holds no normalisation statistics of {name!r}; without them its actions mean something else: "
                        "save it again with the processors that it was trained with"
                    )
                sizes = {
                    key: torch.as_tensor(value).numel()
                    for key, value in statistics.items()
                    if key in ("mean", "std", "min", "max")
                }
                expected = feature.shape[0]  # of images: the channels
                for key, size in sizes.items():
                    if size != expected:
                        raise CheckpointError(
                            f"{model.name}: the {key} of {name!r} has {size} numbers, and the policy's feature {expected}"
                        )


def _read_steps(folder: Path, name: str, trust: bool) -> set[str]:
    """The registered names of a processor's steps, which are checked before any is made."""
    if not (folder / name).is_file():
        raise CheckpointError(
            f"{folder} has no {name}: it is no LeRobot policy, or one of a release before 0.4; for those see "
            "`python -m lerobot.processor.migrate_policy_normalization --help`"
        )
    names = set()
    steps = _read_json(folder, name).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{folder / name} lists no steps; expected a LeRobot processor")
    for step in steps:
        if "registry_name" not in step:
            trusted.require_trust(
                folder / name,
                f"a processor with a step that is made by importing {step.get('class')!r}",
                trust,
            )
        file = step.get("state_file")
        if file is not None and (Path(str(file)).name != file or not (folder / file).is_file()):
            raise CheckpointError(f"{folder} has no {file}, the state of a step of {name}")
        names.add(str(step.get("registry_name")))
    return names


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / name} cannot be read ({_short(error)}); expected JSON, as LeRobot writes it"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / name} holds no JSON object; expected what LeRobot writes")
    return value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

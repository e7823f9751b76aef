"""What a LeRobot checkpoint may contain without being trusted.

Some of LeRobot's policies and processor steps load further models by name, from a folder or the hub, and run
code from there. Those listed here do not. The lists have all that LeRobot writes for these types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from residual_rl.errors import CheckpointError
from residual_rl.utils.trusted import require_trust

POLICY_TYPES = ("act", "diffusion", "tdmpc", "vqbet")
"""Policies whose weights are all in the checkpoint."""
_NORMALIZATION = ("eps", "features", "norm_map", "normalize_observation_keys")
PROCESSOR_STEPS: dict[str, tuple[str, ...]] = {
    "device_processor": ("device", "float_dtype"),
    "normalizer_processor": _NORMALIZATION,
    "rename_observations_processor": ("rename_map",),
    "to_batch_processor": (),
    "unnormalizer_processor": _NORMALIZATION,
}
"""Registered names of processor steps, with their permitted options."""


def check_policy_type(file: Path, kind: Any, trusted: bool) -> str:
    """The type of the policy with the settings in `file`.

    Raises `ConfigError` if it is not on the list and not trusted, and `CheckpointError` if it is no type.
    """
    if not isinstance(kind, str):
        raise CheckpointError(f"{file} has no policy type; expected the settings of a LeRobot policy")
    if kind not in POLICY_TYPES:
        others = f"other than {', '.join(POLICY_TYPES)}"
        require_trust(file, f"of a LeRobot policy of type {kind!r}, {others}", trusted)
    return kind


def check_step(file: Path, step: dict[str, Any], trusted: bool) -> None:
    """Raise `ConfigError` unless a step of the processor in `file`, with its options, is on the list or
    trusted, and `CheckpointError` if its options are not a JSON object.
    """
    name, options = step.get("registry_name"), step.get("config", {})
    if "registry_name" not in step:
        require_trust(file, f"a processor with a step created by importing {step.get('class')!r}", trusted)
    elif not isinstance(name, str) or name not in PROCESSOR_STEPS:
        require_trust(file, f"a processor with the step {name!r}, which may load further models", trusted)
    if not isinstance(options, dict):
        raise CheckpointError(f"{file}: the options of the step {name!r} are not a JSON object")
    others = [option for option in options if option not in PROCESSOR_STEPS.get(str(name), ())]
    if others:
        kind = f"a processor with the step {name!r}, whose option {others[0]!r} LeRobot does not write"
        require_trust(file, kind, trusted)

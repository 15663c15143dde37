"""The GPUs that an engine runs on."""

from __future__ import annotations

from typing import Literal, get_args

HardwareCompatible = Literal["none", "ampere+", "same-compute-capability"]
"""GPUs of the model that built it, all from Ampere on, or all of the same compute capability (Turing and later)."""


def read_compatibility(value: object) -> HardwareCompatible:
    """Return the level that `value` names; version 0.1 knew True ("ampere+") and False. Raises `ValueError`."""
    if isinstance(value, bool):
        return "ampere+" if value else "none"
    for level in get_args(HardwareCompatible):
        if value == level:
            return level  # type: ignore[no-any-return]
    raise ValueError(f"hardware_compatible is {value!r}")

"""Parts of a model by name: which stay in FP32 when the rest is FP16, and how a glob names a module.

A glob is a dotted path as in `model.named_modules()`; `*` stands for anything within one part of it:
`decoder.decoder.layers.*.cross_attn.coordinates`. It names those modules and, with them, all that is inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Fp32Scope:
    """What `module` (a glob) computes stays in FP32 because of `reason`; only its `operators`, where some are given.

    `operators` are ONNX's ("Softmax"). `name` is short and unique within a family, for reports and studies.
    """

    name: str
    module: str
    reason: str
    operators: tuple[str, ...] = ()

    def covers(self, module: str, operator: str) -> bool:
        """Whether an `operator` that `module` computes stays in FP32."""
        return (not self.operators or operator in self.operators) and match_module(self.module, module) is not None

    def inside(self, parent: str) -> Fp32Scope:
        """Return the same scope of a model that is the submodule `parent` of another."""
        return replace(self, module=f"{parent}.{self.module}")


def match_module(glob: str, module: str) -> str | None:
    """Return the path of the module that `glob` names: `module` itself or one around it. None where it names neither.

    `match_module("encoder.*.*", "encoder.pan_blocks.1.conv1")` is `"encoder.pan_blocks.1"`.
    """
    wanted, parts = glob.split("."), module.split(".")
    if len(parts) < len(wanted) or not all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=False)):
        return None
    return ".".join(parts[: len(wanted)])

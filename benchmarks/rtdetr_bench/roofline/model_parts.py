"""To which part of a model a kernel belongs, by the names that exporters give to nodes.

RT-DETR in the names of this project, the released exporter and Hugging Face: backbone, encoder, selection, decoder
layers (their heads, reference boxes and position embeddings included), postprocessing. Any other model: by the first
component of its names, such as YOLO's `model.7`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rtdetr_bench.roofline.fusion import Kernel
from rtdetr_bench.roofline.graph import Operation
from rtdetr_bench.roofline.work import MATRIX, SCATTERED

OTHER = "other"
SELECTION = "selection"
SAMPLER = "sampler"
POSTPROCESSING = "postprocessing"
INPUT = "cast of "
"""How the name of an input's Cast begins."""
CAST = "cast_"
"""How the names of Casts that rtdetr-export placed begin: of a node's value, or of an input."""
_LAYER = r"^/model/(?:decoder/)+"
_PARTS = (
    (rf"^/(?:preprocess|before)|^{INPUT}", "input"),
    (r"^/(?:postprocess|behind)", POSTPROCESSING),
    (r"^/model/(backbone|encoder)/", "{}"),
    (_LAYER + r"layers\.(\d+)", "decoder layer {}"),
    (_LAYER + r"query_pos_head/layers\.\d+(?:_(\d+))?/", "decoder layer {}"),
    (_LAYER + r"(?:dec_)?(?:bbox|score|class)_(?:head|embed)\.(\d+)", "decoder layer {}"),
    (_LAYER + r"(?:query_pos_head|reference_box|refinement)(?:_(\d+))?/", "decoder layer {}"),
    (r"^/model/decoder/", SELECTION),
)  # fmt: skip
_SAMPLER = re.compile(_LAYER + r"layers\.\d+/(?:cross_attn|encoder_attn)/")
_PROJECTIONS = re.compile(r"/(?:value_proj|output_proj|sampling_offsets|attention_weights)/")
_FURTHER_CALL = re.compile(r"_\d+$")


def parts_of(kernels: Sequence[Kernel]) -> tuple[str, ...]:
    """Return the part of each kernel; one without a name of its own belongs where the kernel before it does."""
    parts: list[str] = []
    for kernel in kernels:
        found = (part for name in names_of(kernel) if (part := part_of(name)) is not None)
        parts.append(next(found, parts[-1] if parts else OTHER))
    return tuple(parts)


def part_of(name: str) -> str | None:
    """Return the part that a node with this name belongs to; None for a name that tells nothing."""
    for pattern, part in _PARTS:
        match = re.search(pattern, name)
        if match is not None:
            return part.format(*(number or "0" for number in match.groups()))  # a first call has no number
    components = name.split("/")
    return components[1] if name.startswith("/") and len(components) > 2 else None


def part_of_operation(operation: Operation) -> str | None:
    """Return the part that an operation belongs to; None where its names tell nothing."""
    name = _telling_name(operation)
    return None if name is None else part_of(name)


def is_sampler(kernel: Kernel) -> bool:
    """Return whether a kernel belongs to what deformable attention does between its projections."""
    name = next(names_of(kernel), "")
    return _SAMPLER.search(name) is not None and _PROJECTIONS.search(name) is None


def module_of(kernel: Kernel) -> str:
    """Return the module that a kernel computes, for alike ones the same: `decoder/layers.*/norm1`."""
    name = next(names_of(kernel), OTHER)
    path = [_FURTHER_CALL.sub("", component) for component in name.split("/")[1:-1]]
    if not path:
        return OTHER
    return re.sub(r"\.\d+", ".*", "/".join(path).removeprefix("model/"))


def names_of(kernel: Kernel) -> Iterator[str]:
    """Yield the names of a kernel's operations that tell where they belong, that of its main operation first."""
    for operation in sorted(kernel.operations, key=_importance):
        name = _telling_name(operation)
        if name is not None:
            yield name


def _telling_name(operation: Operation) -> str | None:
    for name in (operation.name, *(value.name for value in operation.outputs)):
        if name.startswith(CAST):
            name = name.removeprefix(CAST)
            name = name if name.startswith("/") else f"{INPUT}{name}"
        if name.startswith(("/", INPUT)):
            return name
    return None


def _importance(operation: Operation) -> int:
    if operation.operator in MATRIX:
        return 0
    return 1 if operation.operator in SCATTERED else 2 + (operation.operator == "Cast")

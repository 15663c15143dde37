"""GPUs as data: peak rates by precision and memory bandwidth, with where each figure is published.

Rates count a multiply-add as two operations and are dense: figures of data sheets "with sparsity" are halved. TF32 is
off, as in the engines built here, so that FP32 runs on the CUDA cores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import require_file


@dataclass(frozen=True)
class Gpu:
    """Peak rates in 10^12 operations per second, `bandwidth` of the memory in 10^9 bytes per second.

    `fp32` and `fp16_vector` are those of the CUDA cores, `fp16` and `int8` those of the tensor cores. `source` says
    where the figures are published. Raises `OptionError` for a rate that is not a positive number, and for a name or
    source that is not text.
    """

    name: str
    fp32: float
    fp16: float
    fp16_vector: float
    int8: float
    bandwidth: float
    source: str = ""

    def __post_init__(self) -> None:
        for text in ("name", "source"):
            if not isinstance(getattr(self, text), str):
                raise OptionError(f"`gpu`: {text} is {getattr(self, text)!r}, expected text")
        for rate in RATES:
            value = getattr(self, rate)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise OptionError(f"`gpu`: {rate} is {value!r}, expected a number above 0")


RATES = ("fp32", "fp16", "fp16_vector", "int8", "bandwidth")

GPUS: dict[str, Gpu] = {
    "t4": Gpu(
        "Tesla T4", fp32=8.1, fp16=65, fp16_vector=16.2, int8=130, bandwidth=320,
        source="NVIDIA T4 data sheet; Turing architecture whitepaper (FP16 on CUDA cores: twice FP32)",
    ),
    "l4": Gpu(
        "L4", fp32=30.3, fp16=121, fp16_vector=30.3, int8=242.5, bandwidth=300,
        source="NVIDIA L4 data sheet (FP16 242, INT8 485 with sparsity); Ada whitepaper (FP16 on CUDA cores: as FP32)",
    ),
    "a10": Gpu(
        "A10", fp32=31.2, fp16=125, fp16_vector=31.2, int8=250, bandwidth=600,
        source="NVIDIA A10 data sheet; GA102 whitepaper (FP16 on CUDA cores: as FP32)",
    ),
    "orin-nx": Gpu(
        "Jetson Orin NX 16GB", fp32=1.88, fp16=15, fp16_vector=3.76, int8=30, bandwidth=102.4,
        source="Jetson Orin NX series data sheet: 1024 CUDA cores at 918 MHz, GPU 60 INT8 TOPS with sparsity",
    ),
    "h100": Gpu(
        "H100 SXM5 80GB", fp32=66.9, fp16=989.4, fp16_vector=133.8, int8=1978.9, bandwidth=3350,
        source="NVIDIA H100 architecture whitepaper, table of peak rates (dense)",
    ),
}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """Return the GPU of the table called `name`, or that of a JSON file whose keys are the fields of `Gpu`.

    Raises `OptionError` for an unknown name, and for a file that is not such a one.
    """
    known = GPUS.get(name.lower())
    if known is not None:
        return known
    if Path(name).suffix.lower() != ".json":
        raise OptionError(f"`gpu` is {name!r}, expected one of {', '.join(GPUS)}, or a .json file of a GPU's rates")
    return _read_gpu(Path(name))


def _read_gpu(path: Path) -> Gpu:
    require_file(path, OptionError)
    wanted = [item.name for item in fields(Gpu)]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"`gpu`: {path.name} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"`gpu`: {path.name} is not a JSON object of {', '.join(wanted)}")
    lacks = [name for name in wanted if name not in content and name != "source"]
    unknown = [name for name in content if name not in wanted]
    told = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has unknown keys: {', '.join(unknown)}"] * bool(unknown)
    if told:
        raise OptionError(
            f"`gpu`: {path.name} {', and '.join(told)}; expected {', '.join(wanted)} (source may be left out)"
        )
    return Gpu(**content)

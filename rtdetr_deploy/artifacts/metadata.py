"""What travels with every exported file, so that it can be run without its checkpoint.

An ONNX file carries it as JSON in one metadata entry, `METADATA_KEY`; engine files carry it in a file beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from rtdetr_deploy.artifacts.bf16 import Bf16Check
from rtdetr_deploy.artifacts.cascade import Cascade, check_cascade
from rtdetr_deploy.artifacts.decoding import RTDETR_DECODING, ScoreDecoding
from rtdetr_deploy.artifacts.fields import find_wrong_field, read_part
from rtdetr_deploy.errors import ArtifactError, OptionError
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec

METADATA_KEY = "rtdetr_deploy"
INPUT = "images"
"""What the input of every exported file is called."""
FORMAT = 1
"""Version of the layout below; a reader refuses newer ones."""

OutputKind = Literal["detections", "raw"]
NamesSource = Literal["file", "given", "coco", "numbered", "unknown"]


@dataclass(frozen=True)
class ArtifactInfo:
    """Metadata of an exported model.

    `class_names` in the order of the labels; `height` and `width` of the input in pixels; `batch` None where it is
    dynamic; `layers` decoder layers in the file; `precision` of the weights ("fp32", ...); `sampler` of deformable
    attention; `outputs` "detections" (labels, boxes, scores) or "raw" (logits, boxes); `raw_input` True where the
    input is uint8 NHWC; `max_detections` rows of the output; `source_digest` SHA-256 of the checkpoint;
    `verified` False where the parity report was skipped; `version` of this package that wrote it; `family` of the
    model ("rtdetr"); `preprocess` what its input wants (None: what RT-DETR wants); `decoding` of raw scores;
    `match_rate` the share of FP32's detections that a file of lower precision kept within 2 px and 0.05 when it was
    verified (None: FP32, or not verified). `runtime` is what runs the file, and in which arithmetic, where a Predictor
    has opened it (`Predictor.info`); it is not stored.

    `fp32_nodes` are names of nodes, or starts of names that end in "/", that stay in FP32 where a processor computes
    the rest in BF16; `bf16` says how many detections that keeps (None: not compared, on a machine without BF16, without
    images, or with `verify=False`).

    `queries` are those that the encoder selects; in a `cascade` (K, N) only the N best of them go on after layer K.

    Raises `ArtifactError` for values of another kind, and where they contradict each other.
    """

    class_names: tuple[str, ...]
    height: int
    width: int
    batch: int | None
    variant: str
    layers: int
    queries: int
    max_detections: int
    precision: str
    sampler: str
    outputs: OutputKind
    raw_input: bool
    opset: int
    source: str
    source_digest: str
    verified: bool
    version: str
    family: str = "rtdetr"
    preprocess: PreprocessSpec = None  # type: ignore[assignment]  # set below: it depends on the size
    decoding: ScoreDecoding = RTDETR_DECODING
    match_rate: float | None = None
    cascade: Cascade | None = None
    fp32_nodes: tuple[str, ...] = ()
    bf16: Bf16Check | None = None
    runtime: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.preprocess is None and self._is_size():
            plain = PreprocessSpec.rtdetr(self.size, "uint8" if self.raw_input else "float32")
            object.__setattr__(self, "preprocess", plain)
        wrong = find_wrong_field(self)
        if wrong is not None:
            raise ArtifactError(f"{wrong.replace('`', '')} in a model's metadata")
        if not self.class_names:
            raise ArtifactError("a model must have at least one class")
        if not self._is_size() or (self.batch is not None and self.batch < 1):
            raise ArtifactError(f"input {self.height}x{self.width}, batch {self.batch} is not a size")
        if self.match_rate is not None and not 0.0 <= self.match_rate <= 1.0:
            raise ArtifactError(f"match_rate {self.match_rate} is not a share in a model's metadata")
        self._check_cascade()
        if (self.preprocess.size, self.preprocess.dtype == "uint8") != (self.size, self.raw_input):
            raise ArtifactError(f"preprocess is for another input than {self.height}x{self.width}: {self.preprocess}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.height, self.width

    @property
    def output_queries(self) -> int:
        """Queries of the last decoder layer, which detections are made of; rows of raw outputs."""
        return self.queries if self.cascade is None else self.cascade[1]

    def _check_cascade(self) -> None:
        if self.cascade is not None:
            try:
                check_cascade(self.cascade, self.layers, self.queries)
            except OptionError as error:
                told = str(error).replace("`", "")
                raise ArtifactError(f"{told}, in a model's metadata") from error

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """In what a CPU may compute the file and keep its detections: "fp32", and "bf16" where the export found so."""
        return ("fp32", "bf16") if self.bf16 is not None and self.bf16.allowed else ("fp32",)

    def _is_size(self) -> bool:
        return all(type(side) is int and side > 0 for side in self.size)

    def to_stored(self) -> dict[str, Any]:
        """Return what is stored, as a map that JSON can hold; see `read_stored`."""
        stored = {"format": FORMAT, **asdict(self)}
        del stored["runtime"]
        return stored

    def to_json(self) -> str:
        """Return the JSON text that is stored, with sorted keys."""
        return json.dumps(self.to_stored(), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class ThirdPartyInfo:
    """What can be told of a file that this package did not write.

    `names_source` says where `class_names` come from: "given" to the Predictor; "coco" where the file has 80 classes
    and no names, so that COCO's are assumed; "numbered" (`class 0`, ...) for any other number of classes; "unknown",
    without names, where the file doesn't tell how many classes it has. The rest is as in `ArtifactInfo`.
    """

    class_names: tuple[str, ...]
    names_source: NamesSource
    height: int
    width: int
    batch: int | None
    outputs: OutputKind
    raw_input: bool
    runtime: str | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.height, self.width


def read_metadata(metadata: Mapping[str, str], name: str) -> ArtifactInfo | None:
    """Return the stored metadata of the file called `name`, or None when it is not one of ours.

    Raises `ArtifactError` when the entry is damaged or was written by a newer version.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} has a damaged {METADATA_KEY} metadata entry; export it again") from error
    return read_stored(stored, name)


def read_stored(stored: Any, name: str) -> ArtifactInfo:
    """Return the metadata that `ArtifactInfo.to_stored` made a map of; raises `ArtifactError` as `read_metadata`."""
    try:
        written = int(stored["format"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{name} has a damaged {METADATA_KEY} metadata entry; export it again") from error
    if not 1 <= written <= FORMAT:
        raise ArtifactError(
            f"{name} was written in format {written}, this version reads up to {FORMAT}; update rtdetr-deploy"
        )
    return _from_stored(stored, name)


def _from_stored(stored: dict[str, Any], name: str) -> ArtifactInfo:
    known = {one.name: one.default is MISSING for one in fields(ArtifactInfo) if one.name != "runtime"}
    missing = sorted(name for name, required in known.items() if required and name not in stored)
    if missing:
        raise ArtifactError(f"{name} lacks {', '.join(missing)} in its metadata; export it again")
    stored = {key: value for key, value in stored.items() if key in known}
    for part, kind in _PARTS.items():
        if stored.get(part) is not None:
            stored[part] = read_part(kind, stored[part], f"{part} of {name}")
    for entry in ("class_names", "cascade", "fp32_nodes"):
        if isinstance(stored.get(entry), list):
            stored[entry] = tuple(stored[entry])
    try:
        return ArtifactInfo(**stored)
    except ArtifactError as error:
        raise ArtifactError(f"{name} has a damaged {METADATA_KEY} metadata entry: {error}; export it again") from error


_PARTS: dict[str, type[PreprocessSpec | ScoreDecoding | Bf16Check]] = {
    "preprocess": PreprocessSpec,
    "decoding": ScoreDecoding,
    "bf16": Bf16Check,
}

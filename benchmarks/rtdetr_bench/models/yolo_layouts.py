"""What third-party detectors return, recognised by shape, and the candidates in it.

    anchors     (B, N, 5 + K)   YOLOv5, v6, v7: cxcywh in pixels of the input, objectness, K class scores
    channels    (B, 4 + K, N)   YOLOv8, 9, 11: cxcywh in pixels of the input, K class scores
    end-to-end  (B, N, 6)       YOLOv10, 26: xyxy in pixels of the input, score, class; nothing to suppress
    queries     (B, N, 4 + K)   Ultralytics' RT-DETR up to 8.3: cxcywh in [0, 1], K class scores; nothing to suppress
    selected    (B, N, 6)       the same from 8.4 on, told by its metadata: cxcywh in [0, 1], score, class
    inserted    boxes, scores, labels, images of `insert_nms`
    plugin      the four outputs of EfficientNMS_TRT

In the first two N is the number of cells of the grids at strides 8, 16 and 32 (with 4 or 64 in some models), three
boxes each in v5 and v7; a file that leaves its size open leaves N open too. To add a layout, add a line to `LAYOUTS`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rtdetr_bench.models.nms import Candidates
from rtdetr_deploy import ArtifactError
from rtdetr_deploy.boxes import cxcywh_to_xyxy
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.runtimes import Array, Runtime, TensorSpec
from rtdetr_deploy.words import plural

GRIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
NMS_METADATA = "rtdetr_bench.nms"
"""Key under which `insert_nms` stores its thresholds."""
INSERTED = ("nms_boxes", "nms_scores", "nms_labels", "nms_images")
"""Outputs that `insert_nms` adds: (M, 4) xyxy, (M,), (M,), (M,) over all images of the batch."""
PLUGIN = ("num_dets", "det_boxes", "det_scores", "det_classes")
"""Outputs of EfficientNMS_TRT: (B, 1), (B, M, 4) xyxy, (B, M), (B, M)."""


@dataclass(frozen=True)
class Hints:
    """What tells layouts of alike shapes apart.

    Axes 1 and 2 (None: open) of the only output of rank 3 (absent where there are several), the numbers of boxes that
    YOLOs have for the input's size, and whether the file says that it holds queries.
    """

    axes: tuple[int | None, int | None] | None
    counts: frozenset[int]
    queries: bool


@dataclass(frozen=True)
class Layout:
    """One way to return detections.

    `fits` tells whether an output has this layout; layouts of `outputs` are told by these names instead. `read` takes
    the arrays of the outputs of one image (of `inserted`: of the batch, and the image's row), the input's (width,
    height, width, height) and the threshold, and returns boxes xyxy in pixels of the input, scores and labels.
    `head` is the number of columns before the class scores, where there are such. `stretched` inputs see the image
    without a letterbox.
    """

    name: str
    read: Callable[[Sequence[Array], int, Array, float], tuple[Array, Array, Array]]
    fits: Callable[[Hints], bool] | None = None
    outputs: tuple[str, ...] = ()
    head: int | None = None
    class_axis: int = 1
    needs_nms: bool = False
    stretched: bool = False
    nms_in_graph: str = "none"

    def classes(self, axes: tuple[int | None, int | None] | None) -> int | None:
        """Return the number of classes, where the shape tells."""
        count = None if self.head is None or axes is None else axes[self.class_axis]
        return None if count is None or self.head is None else count - self.head


def _is_channels(hints: Hints) -> bool:
    rows, columns = hints.axes or (None, None)
    return not hints.queries and rows is not None and rows >= 5 and (columns is None or columns in hints.counts)


def _is_anchors(hints: Hints) -> bool:
    rows, columns = hints.axes or (None, None)
    return not hints.queries and columns is not None and columns >= 6 and (rows is None or rows in hints.counts)


def _has_six_columns(hints: Hints) -> bool:
    rows, columns = hints.axes or (None, None)
    return rows is not None and columns == 6


def _is_queries(hints: Hints) -> bool:
    rows, columns = hints.axes or (None, None)
    return rows is not None and columns is not None and columns >= 5 and (hints.queries or rows > columns)


def _read_inserted(arrays: Sequence[Array], row: int, _: Array, threshold: float) -> tuple[Array, Array, Array]:
    boxes, scores, labels, images = arrays[0], *(array.reshape(-1) for array in arrays[1:])
    mine = (images == row) & (scores > threshold)
    return boxes[mine], scores[mine], labels[mine]


def _read_plugin(arrays: Sequence[Array], row: int, _: Array, threshold: float) -> tuple[Array, Array, Array]:
    count = int(arrays[0][row].reshape(-1)[0])
    boxes, scores, labels = (array[row][:count] for array in arrays[1:])
    mine = scores > threshold
    return boxes[mine], scores[mine], labels[mine]


def _read_channels(arrays: Sequence[Array], row: int, _: Array, threshold: float) -> tuple[Array, Array, Array]:
    output = arrays[0][row]
    labels, places = np.nonzero(output[4:] > threshold)
    return cxcywh_to_xyxy(output[:4, places].T), output[4:][labels, places], labels


def _read_anchors(arrays: Sequence[Array], row: int, _: Array, threshold: float) -> tuple[Array, Array, Array]:
    output = arrays[0][row]
    output = output[output[:, 4] > threshold]
    scores = output[:, 5:] * output[:, 4:5]
    places, labels = np.nonzero(scores > threshold)
    return cxcywh_to_xyxy(output[places, :4]), scores[places, labels], labels


def _read_end_to_end(arrays: Sequence[Array], row: int, _: Array, threshold: float) -> tuple[Array, Array, Array]:
    output = arrays[0][row]
    rows = output[output[:, 4] > threshold]
    return rows[:, :4], rows[:, 4], rows[:, 5]


def _read_selected(arrays: Sequence[Array], row: int, size: Array, threshold: float) -> tuple[Array, Array, Array]:
    boxes, scores, labels = _read_end_to_end(arrays, row, size, threshold)
    return cxcywh_to_xyxy(boxes) * size, scores, labels


def _read_queries(arrays: Sequence[Array], row: int, size: Array, threshold: float) -> tuple[Array, Array, Array]:
    output = arrays[0][row]
    places, labels = np.nonzero(output[:, 4:] > threshold)
    return cxcywh_to_xyxy(output[places, :4]) * size, output[:, 4:][places, labels], labels


LAYOUTS = (
    Layout("inserted", _read_inserted, outputs=INSERTED, nms_in_graph="in the graph"),
    Layout("plugin", _read_plugin, outputs=PLUGIN, nms_in_graph="in the graph (EfficientNMS_TRT)"),
    Layout("channels", _read_channels, _is_channels, head=4, class_axis=0, needs_nms=True),
    Layout("anchors", _read_anchors, _is_anchors, head=5, needs_nms=True),
    Layout("selected", _read_selected, lambda hints: hints.queries and _has_six_columns(hints), stretched=True),
    Layout("end-to-end", _read_end_to_end, _has_six_columns),
    Layout("queries", _read_queries, _is_queries, head=4, stretched=True),
)
"""All layouts; the first that fits is taken."""


@dataclass(frozen=True)
class YoloSignature:
    """What a third-party detector takes and returns; `batch` is None where it is dynamic."""

    images: TensorSpec
    height: int
    width: int
    batch: int | None
    layout: Layout
    outputs: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def preprocess(self) -> PreprocessSpec:
        """What the model wants of its images: YOLOs see them at their own aspect ratio on grey, RT-DETRs stretched."""
        size, stretched = (self.height, self.width), self.layout.stretched
        return PreprocessSpec(size, letterbox=not stretched, dtype=self.images.dtype.name)

    def find_candidates(self, outputs: Mapping[str, Array], row: int, threshold: float) -> Candidates:
        """Return what the output of image `row` of a batch holds above `threshold`, in pixels of the input."""
        size = np.array((self.width, self.height) * 2, np.float32)
        boxes, scores, labels = self.layout.read([outputs[name] for name in self.outputs], row, size, threshold)
        return Candidates(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64))


def recognize_yolo(runtime: Runtime, name: str, size: tuple[int, int] | None = None) -> YoloSignature:
    """Return the signature of a loaded model; `size` (height, width) is needed where the file leaves it open.

    Raises `ArtifactError` when its inputs and outputs are not a YOLO's.
    """
    images = runtime.inputs[0]
    if len(runtime.inputs) != 1 or len(images.shape) != 4 or images.shape[1] != 3 or images.dtype.kind != "f":
        raise ArtifactError(f"{name} is not a detector that is known here: it takes {_describe(runtime.inputs)}")
    task = runtime.metadata.get("task", "detect")  # this, "head" and "names" are what Ultralytics' exporter stores
    if task != "detect":
        raise ArtifactError(f"{name} is not a detector: its task is {task}")
    height, width = (given or asked for given, asked in zip(images.shape[2:], size or (None, None), strict=True))
    if height is None or width is None:
        raise ArtifactError(f"{name} leaves its image size open; say which to use with `size`")
    queries = "RTDETR" in runtime.metadata.get("head", "")
    layout, outputs, classes = _find_layout(runtime.outputs, name, _box_counts(height, width), queries=queries)
    names = _read_names(runtime.metadata)
    if names and classes is not None and len(names) != classes:
        raise ArtifactError(
            f"{name} has {plural(len(names), 'class name')} and {plural(classes, 'score')} for each box"
        )
    if not names:
        names = tuple(f"class {index}" for index in range(classes or 0))
    return YoloSignature(images, height, width, images.shape[0], layout, outputs, names)


def _box_counts(height: int, width: int) -> frozenset[int]:
    """Return the numbers of boxes that YOLOs have for an input: a box per cell of their grids, or three."""
    cells = {sum((height // stride) * (width // stride) for stride in grid) for grid in GRIDS}
    return frozenset(cells | {3 * count for count in cells})


def _find_layout(
    specs: Sequence[TensorSpec], name: str, counts: frozenset[int], *, queries: bool
) -> tuple[Layout, tuple[str, ...], int | None]:
    """Return the layout, the outputs that hold it, and the number of classes where the shape tells.

    Models of three axes' maps beside their boxes (YOLOv7 without --end2end) have one output of rank 3 among others.
    """
    names = {spec.name for spec in specs}
    flat = [spec for spec in specs if len(spec.shape) == 3]
    axes = (flat[0].shape[1], flat[0].shape[2]) if len(flat) == 1 else None
    hints = Hints(axes, counts, queries)
    for layout in LAYOUTS:
        if layout.outputs and names >= set(layout.outputs):
            return layout, layout.outputs, None
        if layout.fits is not None and axes is not None and layout.fits(hints):
            return layout, (flat[0].name,), layout.classes(axes)
    raise ArtifactError(
        f"{name} is not a detector that is known here: it returns {_describe(specs)}; expected RT-DETR's labels, "
        "boxes, scores (or logits, boxes), or one output (B, 4+K, N), (B, N, 5+K) or (B, N, 6) as YOLOs have"
    )


def _describe(specs: Sequence[TensorSpec]) -> str:
    parts = [f"{spec.name} ({', '.join('?' if axis is None else str(axis) for axis in spec.shape)})" for spec in specs]
    return ", ".join(parts)


def _read_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names that Ultralytics' exporter stores, a Python dict as text."""
    try:
        stored = ast.literal_eval(metadata.get("names", "{}"))
    except (ValueError, SyntaxError):
        return ()
    return tuple(str(stored[key]) for key in sorted(stored)) if isinstance(stored, dict) else ()

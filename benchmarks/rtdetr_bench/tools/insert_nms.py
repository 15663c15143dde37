"""Appends non-maximum suppression to a YOLO's ONNX file, as people do who want it in the graph.

    onnx      NonMaxSuppression of the ONNX standard; outputs nms_boxes (M, 4) xyxy in pixels of the input, nms_scores,
              nms_labels and nms_images (M,), M over all images of the batch, by class and score
    tensorrt  TensorRT's plugin EfficientNMS_TRT, for engines; outputs num_dets, det_boxes, det_scores, det_classes

Both take every class of a box whose score exceeds the threshold. The plugin is not known to ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

from rtdetr_bench.models.nms import NmsOptions
from rtdetr_bench.models.yolo_layouts import INSERTED, NMS_METADATA, PLUGIN, YoloSignature, recognize_yolo
from rtdetr_bench.options import InsertNmsOptions, NmsKind
from rtdetr_deploy import ArtifactError, OptionError
from rtdetr_deploy.files import atomic_write
from rtdetr_deploy.packages import require
from rtdetr_deploy.runtimes import open_runtime

MAX_PER_CLASS = 300
"""Boxes that NonMaxSuppression keeps per image and class."""


def insert_nms(options: InsertNmsOptions) -> None:
    """Write a copy of a YOLO that suppresses its boxes itself.

    Raises `ArtifactError` when the file is not a YOLO that needs NMS, `OptionError` for other arguments.
    """
    onnx: Any = require("onnx", "inserting NMS", "bench")
    source, target, nms = options.engine, options.output, options.nms
    if source.suffix.lower() != ".onnx" or target.suffix.lower() != ".onnx":
        raise OptionError(f"NMS is inserted into .onnx files; got {source.name} and {target.name}")
    runtime = open_runtime(source)
    try:
        signature = recognize_yolo(runtime, source.name, options.size)
    finally:
        runtime.close()
    if not signature.layout.needs_nms:
        raise ArtifactError(f"{source.name} needs no NMS: its layout is {signature.layout.name}")
    model = onnx.load(str(source))
    _Inserter(onnx, model, signature).insert(nms, options.kind)
    model.metadata_props.add(key=NMS_METADATA, value=f"threshold {nms.threshold:g}, IoU {nms.iou:g}")
    with atomic_write(target) as beside:
        beside.write_bytes(model.SerializeToString())
        if options.kind == "onnx":  # what can't be run is not handed over
            open_runtime(beside).close()


class _Inserter:
    """Adds nodes and constants to a graph."""

    def __init__(self, onnx: Any, model: Any, signature: YoloSignature) -> None:
        self._onnx, self._model, self._graph, self._signature = onnx, model, model.graph, signature

    def insert(self, options: NmsOptions, kind: NmsKind) -> None:
        boxes, scores = self._boxes_and_scores()
        del self._graph.output[:]
        if kind == "onnx":
            self._standard(boxes, scores, options)
        else:
            self._plugin(boxes, scores, options)

    def _node(self, operator: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[str]:
        stem = f"nms/{operator}_{len(self._graph.node)}"
        outputs = [f"{stem}_{index}" for index in range(count)]
        self._graph.node.append(self._onnx.helper.make_node(operator, inputs, outputs, stem, **attributes))
        return outputs

    def _constant(self, values: Any, kind: str) -> str:
        name = f"nms/constant_{len(self._graph.initializer)}"
        shape = [len(values)] if isinstance(values, list) else []
        data = values if isinstance(values, list) else [values]
        self._graph.initializer.append(
            self._onnx.helper.make_tensor(name, getattr(self._onnx.TensorProto, kind), shape, data)
        )
        return name

    def _slice(self, value: str, start: int, end: int) -> str:
        bounds = [self._constant([number], "INT64") for number in (start, end, 2)]
        return self._node("Slice", [value, *bounds])[0]

    def _boxes_and_scores(self) -> tuple[str, str]:
        """Return boxes (B, N, 4) xyxy and scores (B, N, K)."""
        (rows,) = self._node("Cast", [self._signature.outputs[0]], to=self._onnx.TensorProto.FLOAT)
        last = 2**31 - 1
        if self._signature.layout.name == "channels":
            (rows,) = self._node("Transpose", [rows], perm=[0, 2, 1])
            scores = self._slice(rows, 4, last)
        else:
            (scores,) = self._node("Mul", [self._slice(rows, 5, last), self._slice(rows, 4, 5)])
        (half,) = self._node("Mul", [self._slice(rows, 2, 4), self._constant(0.5, "FLOAT")])
        centre = self._slice(rows, 0, 2)
        corners = [self._node(operator, [centre, half])[0] for operator in ("Sub", "Add")]
        return self._node("Concat", corners, axis=2)[0], scores

    def _standard(self, boxes: str, scores: str, options: NmsOptions) -> None:
        (by_class,) = self._node("Transpose", [scores], perm=[0, 2, 1])
        limits = [self._constant([MAX_PER_CLASS], "INT64"), self._constant([options.iou], "FLOAT")]
        limits.append(self._constant([options.threshold], "FLOAT"))
        (chosen,) = self._node("NonMaxSuppression", [boxes, by_class, *limits])  # (M, 3): image, class, box
        columns = [self._constant([index], "INT64") for index in (0, 2)]
        (image,), (box,) = (self._node("Gather", [chosen, column], axis=1) for column in columns)
        (where,) = self._node("Concat", [image, box], axis=1)
        kept = {
            "nms_boxes": self._node("GatherND", [boxes, where])[0],
            "nms_scores": self._node("GatherND", [by_class, chosen])[0],
            "nms_labels": self._node("Gather", [chosen, self._constant(1, "INT64")], axis=1)[0],
            "nms_images": self._node("Gather", [chosen, self._constant(0, "INT64")], axis=1)[0],
        }
        kinds = {"nms_boxes": "FLOAT", "nms_scores": "FLOAT", "nms_labels": "INT64", "nms_images": "INT64"}
        for name in INSERTED:
            self._output(name, kept[name], kinds[name], ["kept", 4] if name == "nms_boxes" else ["kept"])

    def _plugin(self, boxes: str, scores: str, options: NmsOptions) -> None:
        self._graph.node.append(
            self._onnx.helper.make_node(
                "EfficientNMS_TRT", [boxes, scores], list(PLUGIN), "nms/EfficientNMS_TRT", plugin_version="1",
                background_class=-1, max_output_boxes=options.max_detections, score_threshold=options.threshold,
                iou_threshold=options.iou, score_activation=0, box_coding=0,
            )
        )  # fmt: skip
        batch = self._signature.batch or "batch"
        count = options.max_detections
        shapes = {"num_dets": [batch, 1], "det_boxes": [batch, count, 4]}
        for name in PLUGIN:
            kind = "INT32" if name in ("num_dets", "det_classes") else "FLOAT"
            self._graph.output.append(
                self._onnx.helper.make_tensor_value_info(
                    name, getattr(self._onnx.TensorProto, kind), shapes.get(name, [batch, count])
                )
            )

    def _output(self, name: str, value: str, kind: str, shape: list[Any]) -> None:
        self._graph.node.append(self._onnx.helper.make_node("Identity", [value], [name], f"nms/{name}"))
        self._graph.output.append(
            self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape)
        )

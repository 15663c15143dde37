"""Converts our FP32 export to INT8 for OpenVINO with NNCF's recipe for transformers (see README.md here).

    python convert_nncf.py --model r18.onnx --calibration train/ --output nncf.xml [--annotations train.json]

Preset "mixed" (symmetric weights, asymmetric activations), model type "transformer". With annotations it is NNCF's
accuracy-aware recipe: what costs most goes back to FP32 until the AP of those images drops by at most `--max-drop`.
Calibration images are prepared as the file's description says, which is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.metadata import METADATA_KEY, ArtifactInfo, read_metadata
from rtdetr_deploy.detections import Detections
from rtdetr_deploy.evaluate.coco import Annotations, average_precision, read_annotations
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.images.frame import load_frame
from rtdetr_deploy.images.preprocess import HostPreprocessor
from rtdetr_deploy.runtimes.onnx_file import read_graph

IMAGES = 128
"""Calibration images, as many as rtdetr-export uses."""
VALIDATED = 40
"""Images on which AP is measured again and again."""

Floats = NDArray[np.float32]
Batches = list[Floats]


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="FP32 file of rtdetr-export, batch 1")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of images")
    parser.add_argument("--annotations", type=Path, help="of these images; the accuracy-aware recipe then")
    parser.add_argument("--max-drop", type=float, default=0.003, help="of AP, with --annotations (default: 0.003)")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .xml")
    arguments = parser.parse_args()
    stored = read_graph(arguments.model).metadata
    info = read_metadata(stored, arguments.model.name)
    assert info is not None
    start = time.perf_counter()
    model = openvino.Core().read_model(str(arguments.model))
    converted = convert(model, info, arguments)
    for key in (METADATA_KEY,):
        converted.set_rt_info(stored[key], key)
    openvino.save_model(converted, str(arguments.output), compress_to_fp16=False)
    print(f"{arguments.output.name}: {time.perf_counter() - start:.0f} s, NNCF {nncf.__version__}")


def convert(model: Any, info: ArtifactInfo, arguments: argparse.Namespace) -> Any:
    """Return the quantized model."""
    recipe = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    files = find_images([str(arguments.calibration)])
    calibration = nncf.Dataset(prepare(info, files[:: max(1, len(files) // IMAGES)][:IMAGES]))
    if arguments.annotations is None:
        return nncf.quantize(model, calibration, subset_size=IMAGES, **recipe)
    truth = read_annotations(arguments.annotations, arguments.calibration, info.class_names)
    truth = Annotations(**{**vars(truth), "images": truth.images[:VALIDATED]})
    validation = nncf.Dataset(prepare(info, [path for _, path in truth.images]))
    return nncf.quantize_with_accuracy_control(
        model, calibration, validation, measure_ap(info, truth), subset_size=IMAGES, max_drop=arguments.max_drop,
        **recipe,
    )  # fmt: skip


def prepare(info: ArtifactInfo, files: Iterable[Path]) -> Batches:
    """Return the images as the model wants them, one by one."""
    preprocess = HostPreprocessor(info.preprocess)
    return [np.array(preprocess([load_frame(file)], 1)) for file in files]


def measure_ap(info: ArtifactInfo, truth: Annotations) -> Callable[[Any, Iterable[Floats]], float]:
    """Return the function that NNCF calls with a compiled model and the prepared images of `truth`."""
    sizes = [load_frame(path).size for _, path in truth.images]

    def measure(compiled: Any, batches: Iterable[Floats]) -> float:
        request, found = compiled.create_infer_request(), []
        for batch, (height, width) in zip(batches, sizes, strict=True):
            labels, boxes, scores = (np.array(part[0]) for part in request.infer([batch]).values())
            pixels = boxes * np.array([width, height, width, height], np.float32)
            found.append(Detections(pixels, scores, labels, info.class_names))
        return average_precision(found, truth, info.class_names).ap

    return measure


if __name__ == "__main__":
    main()

"""Converts our FP32 export to FP16 and INT8 with other converters and their defaults (see README.md here).

    python convert_precision.py --model r18.onnx --calibration train/ --output peers/

Each file keeps the model's own description, so that it is opened as ours are. Calibration images are prepared as the
description says. What each converter took, or how it failed, is written to converted.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from rtdetr_deploy.artifacts.metadata import read_metadata
from rtdetr_deploy.images.find import find_images
from rtdetr_deploy.images.frame import load_frame
from rtdetr_deploy.images.preprocess import HostPreprocessor

IMAGES = 128
"""Calibration images, as many as rtdetr-export uses."""
AUTOCAST_IMAGES = 16
"""Images on which autocast looks at values: it keeps every value of every image in memory."""
PACKAGES = ("nvidia-modelopt", "onnxconverter-common", "onnx", "onnxruntime")

Floats = NDArray[np.float32]


def main() -> None:
    """Make what is missing in the output folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="FP32 file of rtdetr-export, batch 1")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the ONNX files")
    parser.add_argument("--only", nargs="*", help="names of the files to make, without suffix (default: all)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    data = prepare(arguments.model, arguments.calibration)
    jobs: dict[str, Callable[[Path, Path], None]] = {
        "onnxconverter-common": onnxconverter,
        "modelopt-autocast": autocast,
        "modelopt-autocast-calibrated": lambda model, target: autocast(model, target, data[:AUTOCAST_IMAGES]),
        "modelopt-int8": lambda model, target: quantize(model, target, data, high_precision_dtype="fp32"),
        "modelopt-int8-fp16": lambda model, target: quantize(model, target, data),
        "modelopt-int8-convolutions": lambda model, target: quantize(
            model, target, data, high_precision_dtype="fp32", op_types_to_quantize=["Conv"]
        ),
    }
    report = arguments.output / "converted.json"
    found = json.loads(report.read_text())["files"] if report.exists() else {}
    for name, job in jobs.items():
        target = arguments.output / f"{name}.onnx"
        if not target.exists() and (not arguments.only or name in arguments.only):
            found[name] = convert(job, arguments.model, target)
            print(f"{name}: {found[name]}", flush=True)
            versions = {package: version(package) for package in PACKAGES}
            report.write_text(json.dumps({"versions": versions, "images": len(data), "files": found}, indent=1) + "\n")


def prepare(model: Path, folder: Path) -> Floats:
    """Return evenly chosen images of the folder as the model wants them (n, 3, H, W)."""
    stored = onnx.load(str(model)).metadata_props
    info = read_metadata({item.key: item.value for item in stored}, model.name)
    assert info is not None
    files = find_images([str(folder)])
    chosen = [files[index * len(files) // IMAGES] for index in range(IMAGES)] if len(files) > IMAGES else files
    preprocess = HostPreprocessor(info.preprocess)
    return np.concatenate([np.array(preprocess([load_frame(file)], 1)) for file in chosen])


def convert(job: Callable[[Path, Path], None], model: Path, target: Path) -> dict[str, float | str]:
    """Run a converter on a copy of the model: some leave files beside it. Return its seconds, or how it failed."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        source, made = Path(folder, model.name), Path(folder, "made.onnx")
        source.write_bytes(model.read_bytes())
        try:
            job(source, made)
        except Exception as error:  # whatever it raises is the result
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        seconds = round(time.perf_counter() - start, 1)
        converted = onnx.load(str(made))
    del converted.metadata_props[:]
    converted.metadata_props.extend(onnx.load(str(model)).metadata_props)
    onnx.save(converted, str(target))
    return {"seconds": seconds, "megabytes": round(target.stat().st_size / 1e6, 1)}


def onnxconverter(model: Path, target: Path) -> None:
    """FP16 by onnxconverter-common as its documentation says, inputs and outputs FP32."""
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(str(model)), keep_io_types=True), str(target))


def autocast(model: Path, target: Path, data: Floats | None = None) -> None:
    """FP16 by modelopt's autocast with its default rules, on random values or on images; inputs and outputs FP32."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    given = {}
    if data is not None:
        np.savez(target.with_suffix(".npz"), images=data)
        given = {"calibration_data": str(target.with_suffix(".npz"))}
    converted = convert_to_mixed_precision(str(model), low_precision_type="fp16", keep_io_types=True, **given)
    onnx.save(converted, str(target))


def quantize(model: Path, target: Path, data: Floats, **options: object) -> None:
    """INT8 by modelopt's quantizer with its defaults but for `options`, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize as convert

    convert(
        str(model), quantize_mode="int8", calibration_data={"images": data}, calibration_eps=["cpu"],
        output_path=str(target), **options,
    )  # fmt: skip


if __name__ == "__main__":
    main()

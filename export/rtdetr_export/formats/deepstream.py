"""NVIDIA DeepStream: the configuration of its element nvinfer, labels, and an output parser in C++.

Keys and their meaning: the page "Gst-nvinfer" of the DeepStream documentation, and the sources that NVIDIA publishes
(NVIDIA/DeepStream, src/gst-plugins/gst-nvinfer and src/utils/nvdsinfer), which say what happens to a file:

- pixels become float planes y = net-scale-factor * (x - offset), so a file that takes bytes can't be fed;
- after parsing, the first dimension of the input becomes -1 and the profile 1 .. batch-size, so a fixed batch above 1
  doesn't build;
- network-mode 0 sets no precision flag; with strongly-typed=1 the precision is the graph's. Any other mode lets
  TensorRT round what must stay in FP32, and INT8 asks for a calibration file, which Q/DQ graphs don't have;
- an engine of the name `engine_name` is taken instead of the ONNX file, whatever it was built from.
"""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from string import Template

from rtdetr_deploy.artifacts.metadata import ArtifactInfo
from rtdetr_deploy.errors import OptionError, OutputError
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec
from rtdetr_deploy.words import plural, printable
from rtdetr_export.trt.options import DEFAULT_MAX_BATCH

SYSTEM = "DeepStream"
ONNX = "model.onnx"
CONFIG = "config_infer.txt"
LABELS = "labels.txt"
LIBRARY = "libparse_rtdetr.so"
FUNCTION = "NvDsInferParseRtdetr"
COPIED = ("parse_rtdetr.cpp", "Makefile")
FILE_NAMES = (CONFIG, LABELS, "README.md", *COPIED)
THRESHOLD = 0.5
"""Score from which objects are kept, as the Predictor does by default."""
SEPARATOR = ";"
"""nvinfer splits each line of the labels there, and shows the first part."""
PUSH_TIMEOUT = 40_000
"""Microseconds that nvstreammux waits for the rest of a batch: a frame's time at 25 per second (default: forever)."""


def check_model(*, raw_input: bool, raw_output: bool, batch: int | None) -> None:
    """Raise `OptionError` for a file that nvinfer can't feed, build or read."""
    if raw_input:
        raise OptionError('`format="deepstream"` needs a float input, which nvinfer fills; export without `raw_input`')
    if raw_output:
        raise OptionError(
            '`format="deepstream"` needs labels, boxes and scores, which its parser reads; export without `raw_output`'
        )
    if batch not in (None, 1):
        raise OptionError(
            f'`format="deepstream"` does not go with a fixed batch of {batch}: nvinfer builds engines for 1 to '
            'batch-size images; export with `batch="dynamic"`, or 1'
        )


def check_folder(folder: Path) -> None:
    """Raise `OutputError` where an engine lies in `folder` that nvinfer would take instead of the new file."""
    engines = sorted(folder.glob(f"{ONNX}_*.engine"))
    if engines:
        raise OutputError(
            f"{engines[0]} was built from the file that {folder / ONNX} replaces, and DeepStream would go on using it; "
            "delete it, or choose another folder"
        )


def make_files(info: ArtifactInfo) -> dict[str, bytes]:
    """Return the content of every file beside the ONNX file, by its name. Raises `OptionError` as `_preprocessing`."""
    texts = {name: _read(name) for name in COPIED}
    texts[CONFIG] = Template(_read(CONFIG)).substitute(_fields(info))
    texts["README.md"] = Template(_read("README.md")).substitute(_fields(info))
    texts[LABELS] = "".join(f"{label_of(index, name)}\n" for index, name in enumerate(info.class_names))
    return {name: text.encode() for name, text in texts.items()}


def next_steps(folder: Path, info: ArtifactInfo) -> str:
    """Return what to type on the machine with DeepStream."""
    lines = [
        "on the machine with DeepStream (README.md in the folder says more; nothing here has run on DeepStream yet):",
        f"  cd {shlex.quote(str(folder))} && make",
        f"  {_export_line(info)}",
        f"  {_pipeline()}",
    ]
    changed = [name for index, name in enumerate(info.class_names) if label_of(index, name) != name]
    if changed:
        lines.insert(0, f"{LABELS}: {', '.join(map(repr, changed))} can't be written there as they are")
    return "\n".join(lines)


def engine_name(info: ArtifactInfo) -> str:
    """Return the name that nvinfer gives the engine that it builds of `ONNX`: batch-size, GPU, network-mode."""
    return f"{ONNX}_b{_batch(info)}_gpu0_fp32.engine"


def label_of(index: int, name: str) -> str:
    """Return a class name as a line of the labels file: no separator, no control character, never empty."""
    return printable(name.replace(SEPARATOR, ",")).strip() or f"class {index}"


def _fields(info: ArtifactInfo) -> dict[str, object]:
    """Return what the templates name."""
    return {
        "source": printable(info.source),
        "precision": info.precision,
        "height": info.height,
        "width": info.width,
        "batch": _batch(info),
        "classes": len(info.class_names),
        "class_count": plural(len(info.class_names), "class"),
        "engine": engine_name(info),
        "export_line": _export_line(info),
        "shapes": _shapes(info),
        "pipeline": _pipeline(),
        "pipeline_without_encoder": _pipeline_without_encoder(info),
        "push_timeout": PUSH_TIMEOUT,
        "preprocessing": _preprocessing(info.preprocess),
        "threshold": THRESHOLD,
    }


def _batch(info: ArtifactInfo) -> int:
    """Return the max batch: what `rtdetr-export` builds engines for by default where the batch is dynamic."""
    return info.batch or DEFAULT_MAX_BATCH


def _export_line(info: ArtifactInfo) -> str:
    """Return the command that builds the engine, of the same batches as trtexec's (see `_shapes`)."""
    line = f"rtdetr-export --weights {ONNX} --output {engine_name(info)}"
    return line if info.batch is not None else f"{line} --max-batch {_batch(info)} --opt-batch {_batch(info)}"


def _shapes(info: ArtifactInfo) -> str:
    """Return trtexec's options for a dynamic batch, tuned for the max batch, as nvinfer does."""
    if info.batch is not None:
        return ""
    shapes = {name: f"images:{batch}x3x{info.height}x{info.width}" for name, batch in
              (("min", 1), ("opt", _batch(info)), ("max", _batch(info)))}  # fmt: skip
    return "".join(f" --{name}Shapes={shape}" for name, shape in shapes.items())


def _pipeline() -> str:
    """Return the pipeline that draws what is found: encoders take one frame at a time."""
    drawn = (
        "nvvideoconvert ! nvdsosd ! nvvideoconvert ! nvv4l2h264enc ! h264parse ! qtmux ! filesink location=found.mp4"
    )
    return _pipeline_to(drawn, 1)


def _pipeline_without_encoder(info: ArtifactInfo) -> str:
    """Return the pipeline that detects and writes nothing, with as many frames at once as the engine takes."""
    return _pipeline_to("fakesink sync=false", _batch(info))


def _pipeline_to(sink: str, batch: int) -> str:
    return (
        "gst-launch-1.0 -e filesrc location=VIDEO.mp4 ! qtdemux ! h264parse ! nvv4l2decoder ! mux.sink_0 "
        f"nvstreammux name=mux batch-size={batch} batched-push-timeout={PUSH_TIMEOUT} width=1920 height=1080 ! "
        f"nvinfer config-file-path={CONFIG} ! {sink}"
    )


def _preprocessing(spec: PreprocessSpec) -> str:
    """Return the keys that make the network's input. Raises `OptionError` for what nvinfer can't do.

    (x * scale - mean) / std is factor * (x - offset) with factor = scale / std and offset = mean / scale.
    """
    if spec.letterbox or spec.filter != "bilinear" or len(set(spec.std)) > 1:
        raise OptionError(
            f'`format="deepstream"` can\'t prepare images for this model: nvinfer stretches them bilinearly and has '
            f"one scale for all channels, and the model wants {spec}"
        )
    lines = [
        f"net-scale-factor={spec.scale / spec.std[0]!r}",
        f"model-color-format={('rgb', 'bgr').index(spec.color)}",
    ]
    if any(spec.mean):
        lines.append(f"offsets={';'.join(repr(mean / spec.scale) for mean in spec.mean)}")
    return "\n".join(lines)


def _read(name: str) -> str:
    return files(__package__).joinpath("deepstream_files").joinpath(name).read_text(encoding="utf-8")

"""rtdetr-export: from a trained checkpoint to a verified model file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_deploy.cli.arguments import flag, parse_given, parse_size, path_argument
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.errors import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting
from rtdetr_deploy.packages import needed_for, require
from rtdetr_deploy.words import plural
from rtdetr_export.options import OPSETS, PRECISIONS, SAMPLERS, ExportOptions, check_files, parse_batch

if TYPE_CHECKING:
    from rtdetr_export.pipeline import ExportResult, Progress

STEP_WIDTH = 72

ENGINES = (".engine", ".plan")
ENGINE_OPTIONS = (
    "max_batch", "opt_batch", "workspace", "timing_cache", "version_compatible", "hardware_compatible",
)  # fmt: skip
EXAMPLES = """examples:
  rtdetr-export --weights r50.pth --layers 4
  rtdetr-export --weights r50.pth --precision fp16 --calibration photos/
  rtdetr-export --weights r18.pth --size 480x800 --batch dynamic --output r18.onnx
  rtdetr-export --weights r50.pth --precision fp16 --batch dynamic --output r50.engine
  rtdetr-export --lint r18.onnx
  rtdetr-export --variants
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-export`."""
    parser = argparse.ArgumentParser(
        prog="rtdetr-export",
        description="Export an RT-DETR or RT-DETRv2 checkpoint to ONNX or TensorRT, and check what it detects.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--weights",
        type=path_argument,
        metavar="FILE",
        help="checkpoint: .pth, .pt, .safetensors, or the folder of a Hugging Face model",
    )
    what.add_argument(
        "--variants", action="store_true", help="print parameters and GFLOPs of every variant beside the published ones"
    )
    what.add_argument(
        "--lint",
        type=path_argument,
        metavar="ONNX",
        help="check an .onnx file against what TensorRT's parser documents",
    )
    add(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="default: beside the weights, e.g. r50-l6-640x640-fp32.onnx",
    )
    add("--layers", type=int, metavar="K", help="decoder layers to keep (default: as many as the variant runs)")
    add("--size", help="640 or HEIGHTxWIDTH, multiples of 32 (default: what the checkpoint names, else 640)")
    add("--batch", default="1", metavar="N", help="images at once: a number, or dynamic (default: %(default)s)")
    add("--queries", type=int, metavar="Q", help="queries that the encoder selects (default: the model's, 300)")
    add("--max-detections", type=int, default=300, metavar="N", help="rows returned per image (default: %(default)s)")
    add(
        "--sampler",
        choices=SAMPLERS,
        help="how deformable attention samples: gather avoids GridSample, grid uses it; discrete is what --variant "
        "...-dsp exports (default: gather; discrete for -dsp variants)",
    )
    add("--raw-input", action="store_true", help="take uint8 RGB images (B, H, W, 3); scaling is in the graph")
    add("--raw-output", action="store_true", help="return logits and cxcywh boxes instead of labels, boxes, scores")
    add(
        "--classes",
        type=path_argument,
        metavar="FILE",
        help="one class name per line (default: the file's, COCO's for 80)",
    )
    add("--variant", metavar="NAME", help="what shapes can't tell: r50-m's 3 layers, discrete sampling (r18-dsp)")
    _add_precision_options(parser)
    opsets = ", ".join(map(str, OPSETS))
    add("--opset", type=int, metavar="V", help=f"ONNX opset: {opsets} (default: {OPSETS[0]})")
    add("--no-verify", action="store_true", help="skip the comparison with torch; the file records that")
    _add_engine_options(parser)
    return parser


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="precision of the weights and the arithmetic in the file (default: %(default)s)",
    )
    add(
        "--non-int8-precision",
        choices=("fp32", "fp16"),
        help="precision of what is not INT8, with --precision int8 (default: fp16 in engines, else fp32)",
    )
    add(
        "--calibration",
        type=path_argument,
        metavar="DIR",
        help="images like those to detect on, for lower precisions: ranges are measured and detections compared there",
    )
    add(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="PATTERN",
        help="nodes whose name matches this regular expression stay in FP32; may be repeated",
    )


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("TensorRT engines (--output NAME.engine; also from an .onnx file as --weights)")
    engine.add_argument("--max-batch", type=int, metavar="N", help="images at once for --batch dynamic (default: 8)")
    engine.add_argument("--opt-batch", type=int, metavar="N", help="batch that it is tuned for (default: 1)")
    engine.add_argument("--workspace", type=float, metavar="GIB", help="limit of the builder's scratch memory")
    engine.add_argument("--timing-cache", type=path_argument, metavar="FILE", help="makes the next build faster")
    engine.add_argument("--version-compatible", action="store_true", help="also run on later versions 10.x or 11.x")
    engine.add_argument("--hardware-compatible", action="store_true", help="run on every GPU from Ampere on (no T4)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 findings of --lint, 2 wrong input, 130 interrupted)."""
    return run_main("rtdetr-export", lambda: _export(*parse_given(build_parser(), argv)), "nothing was written")


def _export(arguments: argparse.Namespace, given: Collection[str]) -> int:
    if arguments.lint is not None:
        _refuse_others(given, "lint")
        return print_findings(arguments.lint)
    if arguments.variants:
        _refuse_others(given, "variants")
        _require_packages()
        print_variants()
        return 0
    target = arguments.output
    read = [path for path in (arguments.weights, arguments.classes) if path is not None]
    refuse_overwriting({"--output": target, "--timing-cache": arguments.timing_cache}, read)
    if target is not None and target.suffix.lower() in ENGINES:
        return _export_engine(arguments, given)
    _refuse_engine_options(given)
    options = _options(arguments)
    check_files(options)
    _require_packages()
    from rtdetr_export.pipeline import export_onnx

    with _shown_steps() as progress:
        result = export_onnx(options, progress)
    print_result(result)
    return 0


def _export_engine(arguments: argparse.Namespace, given: Collection[str]) -> int:
    """Export to ONNX beside the engine, unless that is what was given, and build the engine from it."""
    target: Path = arguments.output
    arguments.output = target.with_name(target.name + ".onnx")
    options = None
    if arguments.weights.suffix.lower() == ".onnx":
        _refuse_model_options(arguments, given)
    else:
        if arguments.precision == "int8":
            arguments.non_int8_precision = arguments.non_int8_precision or "fp16"
        options = _options(arguments)
        check_files(options)
    check_writable(target)
    with needed_for("exporting", "export"):
        from rtdetr_export.precision.reduce import choose_images
        from rtdetr_export.trt.build import EngineOptions, build_engine, print_phase, read_onnx_info, require_gpu
    chosen = {name: getattr(arguments, name) for name in ENGINE_OPTIONS if name in given}
    onnx = arguments.weights if options is None else arguments.output
    engine = EngineOptions(onnx, target, **chosen)
    require_gpu(engine)
    if options is not None:
        from rtdetr_export.pipeline import export_onnx

        _require_packages()
        with _shown_steps() as progress:
            exported = export_onnx(options, progress)
        print_result(exported)
    info = read_onnx_info(onnx)
    if info.batch is not None and (arguments.max_batch is not None or arguments.opt_batch is not None):
        raise OptionError(f"{onnx.name} takes batch {info.batch} alone; export it with --batch dynamic for a choice")
    images = choose_images(arguments.calibration, info.height, info.width)
    result = build_engine(engine, images, print_phase)
    facts, smallest, largest = result.facts, *result.facts.profile[::2]
    batch = f"batch {smallest}" if smallest == largest else f"batch {smallest} to {largest}"
    print(result.report)
    print(
        f"wrote {result.path} ({result.path.stat().st_size / 1e6:.1f} MB): {info.variant}, {info.height}x{info.width}, "
        f"{batch}, {info.precision}, for TensorRT {facts.tensorrt} on {facts.gpu}"
    )
    return 0


def _refuse_model_options(arguments: argparse.Namespace, given: Collection[str]) -> None:
    """Refuse what an .onnx file has decided already: it would be ignored."""
    for name in given:
        if name not in {"weights", "output", "calibration", *ENGINE_OPTIONS}:
            raise OptionError(f"{flag(name)} is decided in {arguments.weights.name} already; export it again")


def _refuse_others(given: Collection[str], verb: str) -> None:
    """Refuse every option beside --lint or --variants: it would be ignored."""
    for name in given:
        if name != verb:
            raise OptionError(f"{flag(name)} does not go with {flag(verb)}; leave it out")


def _refuse_engine_options(given: Collection[str]) -> None:
    for name in given:
        if name in ENGINE_OPTIONS:
            raise OptionError(f"{flag(name)} is for engines; add --output NAME.engine")


def _options(arguments: argparse.Namespace) -> ExportOptions:
    from rtdetr_deploy.artifacts.class_names import read_class_names

    return ExportOptions(
        weights=arguments.weights,
        output=arguments.output,
        layers=arguments.layers,
        size=parse_size(arguments.size) if arguments.size is not None else None,
        batch=parse_batch(arguments.batch),
        queries=arguments.queries,
        max_detections=arguments.max_detections,
        sampler=arguments.sampler,
        raw_input=arguments.raw_input,
        raw_output=arguments.raw_output,
        class_names=read_class_names(arguments.classes) if arguments.classes is not None else None,
        variant=arguments.variant,
        opset=arguments.opset,
        precision=arguments.precision,
        non_int8_precision=arguments.non_int8_precision or "fp32",
        keep_fp32=tuple(arguments.keep_fp32),
        calibration=arguments.calibration,
        verify=not arguments.no_verify,
    )


def _require_packages() -> None:
    for module in ("onnx_ir", "onnxscript", "torch"):
        require(module, "exporting", "export")


@contextmanager
def _shown_steps() -> Iterator[Progress | None]:
    """Yield what shows the running step on a terminal, and a line with the seconds of each; None in a pipe."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=0, bar_format="  {desc}", leave=False, file=sys.stderr) as bar:

        def show(name: str, seconds: float | None) -> None:
            if seconds is None:
                bar.set_description_str(name[:STEP_WIDTH])
            else:
                tqdm.write(f"  {name[:STEP_WIDTH]:<{STEP_WIDTH}} {seconds:6.1f} s", file=sys.stderr)

        yield show


def print_result(result: ExportResult) -> None:
    """Print what was written, for people."""
    info = result.info
    layers = plural(info.layers, "decoder layer")
    batch = "dynamic batch" if info.batch is None else f"batch {info.batch}"
    if result.quantization is not None:
        print(result.quantization)
    if result.fp16 is not None:
        print(result.fp16)
    print(result.report if result.report is not None else "not verified (--no-verify)")
    print(
        f"wrote {result.path} ({result.path.stat().st_size / 1e6:.1f} MB): {info.variant}, {layers}, "
        f"{info.height}x{info.width}, {batch}, {info.precision}, {plural(len(info.class_names), 'class')}"
    )


def print_findings(path: Path) -> int:
    """Print what is wrong with an ONNX file for TensorRT, and return 1 when there are errors."""
    with needed_for("--lint", "export"):
        from rtdetr_export.trt.lint import RULES, lint_file
    findings = lint_file(path)
    for finding in findings:
        print(finding)
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = plural(len(findings) - errors, "warning")
    print(f"{path.name}: {plural(errors, 'error')}, {warnings}; {len(RULES)} rules were checked")
    return 1 if errors else 0


def print_variants() -> None:
    """Print parameters and GFLOPs of every variant at 640x640, and the published ones."""
    from rtdetr_deploy.model.complexity import PUBLISHED, measure_complexity
    from rtdetr_deploy.model.variants import VARIANTS

    print("640x640; parameters of the checkpoint without the denoising embedding; a multiply-add is two operations")
    print(f"{'variant':<10} {'layers':>8} {'params (M)':>11} {'published':>10} {'GFLOPs':>8} {'published':>10}")
    for name, variant in VARIANTS.items():
        counted = measure_complexity(variant)
        parameters, gflops = (f"{value:g}" for value in PUBLISHED[name]) if name in PUBLISHED else ("-", "-")
        layers = f"{variant.layers} of {variant.max_layers}"
        print(
            f"{name:<10} {layers:>8} {counted.parameters:>11.2f} {parameters:>10} {counted.gflops:>8.1f} {gflops:>10}"
        )


if __name__ == "__main__":
    sys.exit(main())

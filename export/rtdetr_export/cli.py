"""rtdetr-export: from a trained checkpoint to a verified model file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetr_deploy.artifacts.input_size import count_tokens
from rtdetr_deploy.cli.arguments import Parser, add_options, in_words_of_the_command, options_of, parse_given
from rtdetr_deploy.cli.run import run_main
from rtdetr_deploy.options import find_options, path_argument, refuse_options
from rtdetr_deploy.packages import needed_for
from rtdetr_deploy.words import plural
from rtdetr_export.options import ExportOptions, refuse_ignored
from rtdetr_export.targets import export
from rtdetr_export.trt.options import EngineOptions

if TYPE_CHECKING:
    from rtdetr_deploy.artifacts.metadata import ArtifactInfo
    from rtdetr_export.progress import Progress, Step
    from rtdetr_export.result import ExportResult

STEP_WIDTH = 72

GROUPS = {
    "model": ("layers", "size", "batch", "queries", "cascade", "class_names", "variant"),
    "file": (
        "output", "format", "target", "max_detections", "sampler", "raw_input", "raw_output", "opset", "verify",
    ),
    "precision": ("precision", "non_int8_precision", "calibration", "keep_fp32"),
}  # fmt: skip
"""The options of `ExportOptions` as the help groups them."""
SPELLINGS = {"verify": "--no-verify", "verify=False": "--no-verify"}
EXAMPLES = """examples:
  rtdetr-export --weights r50.pth --layers 4
  rtdetr-export --weights r50.pth --precision fp16 --calibration photos/
  rtdetr-export --weights r18.pth --size 480x800 --batch dynamic --output r18.onnx
  rtdetr-export --weights r50.pth --output r50.xml
  rtdetr-export --weights r50.pth --precision fp16 --batch dynamic --output r50.engine
  rtdetr-export --weights r50.pth --precision fp16 --format deepstream --output r50-deepstream
  rtdetr-export --lint r18.onnx
  rtdetr-export --variants

exit status: 0 done, 1 --lint found errors, 2 wrong input, 130 interrupted, 128 + n ended by signal n (SIGTERM: 143)
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `rtdetr-export`."""
    parser = Parser(
        "rtdetr-export",
        "Export an RT-DETR or RT-DETRv2 checkpoint to ONNX, OpenVINO or TensorRT, and check what it detects.",
        EXAMPLES,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    add_options(what, ExportOptions, ("weights",), defaults={"weights": None})
    what.add_argument(
        "--variants", action="store_true", help="print parameters and GFLOPs of every variant beside the published ones"
    )
    what.add_argument(
        "--lint",
        type=path_argument,
        metavar="ONNX",
        help="check an .onnx file against what TensorRT's parser documents",
    )
    for title, names in GROUPS.items():
        add_options(parser.add_argument_group(title), ExportOptions, names)
    engines = parser.add_argument_group("TensorRT engines (--output NAME.engine; also from an .onnx file as --weights)")
    add_options(engines, EngineOptions)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see `EXAMPLES`)."""
    interrupted = "the output was not written"
    return run_main("rtdetr-export", lambda: _run(*parse_given(build_parser(), argv)), interrupted, spellings=SPELLINGS)


def _run(arguments: argparse.Namespace, given: Collection[str]) -> int:
    for verb in ("lint", "variants"):
        if verb in given:
            refuse_options(given, (verb,), f"does not go with `{verb}`; leave it out")
    if arguments.lint is not None:
        return print_findings(arguments.lint)
    if arguments.variants:
        print_variants()
        return 0
    refuse_ignored(arguments.weights, arguments.output, given, arguments.format)
    engine = EngineOptions(**options_of(EngineOptions, arguments)) if _names(EngineOptions, given) else None
    options = ExportOptions(**options_of(ExportOptions, arguments), engine=engine)
    with _shown_steps() as progress:
        result = export(options, progress)
    print_result(result)
    return 0


def _names(definition: type, given: Collection[str]) -> set[str]:
    return find_options(definition).keys() & set(given)


@contextmanager
def _shown_steps() -> Iterator[Progress | None]:
    """Yield what shows the running step on a terminal, and a line with the seconds of each; None in a pipe."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=0, bar_format="  {desc}", leave=False, file=sys.stderr) as bar:

        def show(step: Step) -> None:
            if step.seconds is None:
                bar.set_description_str(str(step)[:STEP_WIDTH])
            else:
                tqdm.write(f"  {step.name[:STEP_WIDTH]:<{STEP_WIDTH}} {step.seconds:6.1f} s", file=sys.stderr)

        yield show


def print_result(result: ExportResult) -> None:
    """Print what was written, for people; of an engine also the ONNX file that was written for it."""
    if result.onnx is not None:
        print_result(result.onnx)
    for part in (result.quantization, result.fp16, result.report, result.arithmetics):
        if part is not None:
            print(part)
    if result.report is None and not result.info.verified:
        print("not verified (--no-verify)")
    if result.engine_info is not None and result.engine_info.accepted:
        print(f"accepted in spite of: {'; '.join(result.report.problems()) if result.report else ''}")
    if result.trtexec is not None:
        print(f"the same with NVIDIA's tool: {result.trtexec}")
    size = sum(path.stat().st_size for path in result.files)
    print(f"wrote {' and '.join(map(str, result.files))} ({size / 1e6:.1f} MB): {', '.join(_facts(result))}")
    if result.package is not None:
        print(f"wrote {result.package.folder}: {', '.join(path.name for path in result.package.files)}")
        print(result.package.next_steps)


def _facts(result: ExportResult) -> list[str]:
    info, engine = result.info, result.engine_info
    batch = "dynamic batch" if info.batch is None else f"batch {info.batch}"
    if engine is not None and engine.profile[0] < engine.profile[-1]:
        batch = f"batch {engine.profile[0]} to {engine.profile[-1]}"
    facts = [info.variant, plural(info.layers, "decoder layer"), *_queries(info)]
    facts += [f"{info.height}x{info.width}", batch, info.precision]
    if engine is not None:
        return [*facts, f"for TensorRT {engine.tensorrt} on {engine.gpu}"]
    return [*facts, plural(len(info.class_names), "class")]


def _queries(info: ArtifactInfo) -> Iterator[str]:
    """Yield what is special about the queries: a cascade, and an input of fewer tokens than the model selects."""
    if info.queries == count_tokens(info.height, info.width):
        yield f"{info.queries} queries (as many as the input has tokens)"
    if info.cascade is not None:
        yield "{1} queries after layer {0}".format(*info.cascade)


def print_findings(path: Path) -> int:
    """Print what is wrong with an ONNX file for TensorRT, one line per message; return 1 when there are errors."""
    with needed_for("--lint", "export"):
        from rtdetr_export.trt.lint import RULES, lint_file, merged
    findings = lint_file(path)
    for finding in merged(findings):
        print(in_words_of_the_command(str(finding)))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = plural(len(findings) - errors, "warning")
    print(f"{path.name}: {plural(errors, 'error')}, {warnings}; {len(RULES)} rules were checked")
    return 1 if errors else 0


def print_variants() -> None:
    """Print parameters and GFLOPs of every variant at 640x640, and the published ones."""
    with needed_for("--variants", "export"):
        from rtdetr_export.variant_table import measure_variants

    print("640x640; parameters of the checkpoint without the denoising embedding; a multiply-add is two operations")
    print(f"{'variant':<10} {'layers':>8} {'params (M)':>11} {'published':>10} {'GFLOPs':>8} {'published':>10}")
    for row in measure_variants():
        print(row)


if __name__ == "__main__":
    sys.exit(main())

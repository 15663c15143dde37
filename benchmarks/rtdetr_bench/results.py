"""What a command writes: results as JSON, checked before any work, and read again, with former names too."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rtdetr_deploy import OptionError
from rtdetr_deploy.files import check_writable, refuse_overwriting, require_file, write_bytes

Json = dict[str, Any]
SCHEMA = 4
SWEEP = "sweep"
"""The kind of file that `rtdetr-bench sweep` writes, which has no schema."""
SPANS_OF_SCHEMA_3 = {"decode": "load", "resize": "prepare", "postprocess": "decode"}
"""Today's names of the spans, by those that schema 3 had."""


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """Raise `OutputError` before any work for what would stop it in the end: results over inputs, missing rights.

    `outputs` are the files by the options that name them.
    """
    refuse_overwriting(outputs, inputs)
    for path in outputs.values():
        if path is not None:
            check_writable(path)


@contextmanager
def printed_later(*, enabled: bool) -> Iterator[Callable[[], None]]:
    """Hold back what is printed until results are written: a pager that was closed must not cost a measurement.

    Yields what prints it; after an error in the block it is printed at once.
    """
    tables = io.StringIO()

    def print_tables() -> None:
        print(tables.getvalue(), end="")  # noqa: T201

    try:
        with redirect_stdout(tables) if enabled else nullcontext():
            yield print_tables
    except BaseException:
        print_tables()
        raise


def write_json(path: Path, content: Json) -> None:
    """Write results. Raises `OutputError`."""
    write_bytes(path, f"{json.dumps(content, indent=1)}\n".encode())


def portable(argument: str) -> str:
    """Return a word of a command line as it may be shown anywhere: of a path or pattern its last part."""
    option, assigned, value = argument.partition("=")
    if argument.startswith("--") and assigned:
        return f"{option}={portable(value)}"
    return Path(argument).name or argument


def shown(value: object) -> object:
    """Return an option's value for a JSON file, paths by their last part."""
    if isinstance(value, tuple):
        return [shown(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else portable(str(value))


def read_results(path: Path) -> Json:
    """Return the content of a file that `--json` wrote, in today's names.

    Raises `OptionError` when it is not one of this schema or of schema 3, and not a sweep's file.
    """
    require_file(path, OptionError)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"can't read results {path}: {reason}; expected a file that rtdetr-bench wrote") from error
    if isinstance(content, dict) and content.get("kind") == SWEEP:
        return content
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema not in (3, SCHEMA):
        raise OptionError(f"{path} does not hold results that this version of rtdetr-bench knows; measure again")
    try:
        return _from_schema_3(content) if schema == 3 else dict(content)
    except BAD_CONTENT as error:
        raise edited(path, error) from error


BAD_CONTENT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What goes wrong with results that were edited."""


def edited(path: Path, error: BaseException) -> OptionError:
    """Return the error about a file that is not as it was written."""
    told = " ".join(str(error).split())[:120]
    return OptionError(f"{path} is not as rtdetr-bench writes results ({type(error).__name__}: {told}); measure again")


def with_study_named(content: Json) -> Json:
    """Return results whose study stands below its name; some verbs write theirs beside date and machine."""
    if content.get("kind") == SWEEP:
        return {**content, SWEEP: content}
    if "metrics" in content:
        return {**content, "accuracy": content}
    if "rows" not in content:
        return content
    return {**content, "precision" if "expected" in content else "ablation": content}


def _refuse(name: str) -> object:
    raise ValueError(f"it holds {name}, which is not a number")


def _from_schema_3(content: Json) -> Json:
    """Return results of schema 3 in today's names."""
    comparison, nms = content.get("comparison"), content.get("nms")
    if comparison:
        comparison = _renamed(comparison, {"confidence": "threshold"})
        comparison["models"] = [_model_from_schema_3(model) for model in comparison["models"]]
    if nms:
        nms = _renamed(nms, {"rtdetr_by_confidence": "rtdetr_by_threshold"})
        nms["rows"] = [_renamed(row, {"confidence": "threshold"}) for row in nms["rows"]]
        flat = nms["rtdetr_by_threshold"]
        nms["rtdetr_by_threshold"] = {key: _renamed(row, {"postprocess_ms": "decode_ms"}) for key, row in flat.items()}
    changed = {**content, "comparison": comparison, "nms": nms}
    for name in ("decoder", "encoder"):
        if content.get(name):
            changed[name] = {**content[name], "rows": [_with_spans_of_today(row) for row in content[name]["rows"]]}
    return changed


def _model_from_schema_3(model: Json) -> Json:
    return _renamed(_with_spans_of_today(model), {"boxes_suppressed_from": "nms_input_boxes"})


def _with_spans_of_today(model: Json) -> Json:
    return {**model, **{part: _renamed(model[part], SPANS_OF_SCHEMA_3) for part in ("milliseconds", "samples")}}


def _renamed(values: Json, names: Mapping[str, str]) -> Json:
    return {names.get(name, name): value for name, value in values.items()}

"""Options: whatever doesn't apply to what is asked for is refused, whatever applies is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdetr_bench import commands
from rtdetr_bench.cli import main
from rtdetr_bench.options import VERBS, parse

VALUES = {
    "engine": "m.onnx", "against": "y.onnx", "images": "val", "annotations": "val.json", "nms_study": "y.onnx",
    "decoder_study": "w.pth", "encoder_study": "r18", "encoders": "A,E", "insert_nms": "y.onnx", "nms_kind": "tensorrt",
    "output": "z.onnx", "accuracy": "val.json", "batch": "2", "runs": "5", "duration": "2", "warmup": "3",
    "pause": "0.5", "resizer": "pillow", "size": "640", "threads": "2", "confidence": "0.25", "iou": "0.5",
    "nms": "numpy", "json": "a.json", "report": "a.html", "combine": "b.json",
}  # fmt: skip
"""A value for every option that takes one; --study takes none."""
MEASURED = "against images annotations batch confidence iou nms"
TIMED = "runs duration warmup pause resizer size threads json report"
TAKEN = {
    "engine": f"{MEASURED} {TIMED} nms_study decoder_study encoder_study accuracy study",
    "nms_study": "engine images annotations resizer size threads json report decoder_study encoder_study",
    "decoder_study": f"images annotations confidence {TIMED} engine nms_study encoder_study",
    "encoder_study": f"encoders confidence {TIMED} engine nms_study decoder_study",
    "accuracy": "engine images resizer size threads json study",
    "study": "accuracy engine images size threads json",
    "insert_nms": "output nms_kind confidence iou size",
    "combine": "report",
}
"""What may be typed beside each, as the documentation has it: its options, and what can be asked for with it."""


def _typed(name: str) -> list[str]:
    return ["--" + name.replace("_", "-"), *([VALUES[name]] if name in VALUES else [])]


def test_every_option_has_a_value_here_and_a_place_in_the_table() -> None:
    names = set(vars(parse([]).arguments))
    assert names == {*VALUES, "study"}
    assert names == set(VERBS).union(*VERBS.values())
    assert all(not isinstance(value, str) or "\n" not in value for value in VALUES.values())


@pytest.mark.parametrize("verb", TAKEN)
@pytest.mark.parametrize("option", [*VALUES, "study"])
def test_an_option_is_refused_exactly_where_it_would_be_ignored(
    verb: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if option == verb:
        return
    calls: list[object] = []

    def measure(arguments: object) -> dict[str, object]:
        calls.append(arguments)
        return {}

    def write(arguments: object) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(commands, "_check_outputs", lambda _: None)
    monkeypatch.setattr(commands, "WORK", dict.fromkeys(commands.WORK, measure))
    monkeypatch.setattr(commands, "_insert", write)
    monkeypatch.setattr(commands, "_combine", write)
    monkeypatch.setattr(commands, "write_bytes", lambda *_: None)
    monkeypatch.setattr(commands, "write_report", lambda *_: None)
    status = main([*_typed(verb), *_typed(option)])
    error = capsys.readouterr().err
    if option in TAKEN[verb].split():
        assert (status, error) == (0, "")
        assert calls
    else:
        assert status == 2
        assert not calls
        assert " does not apply to --" in error
        assert error.count("\n") == 1


def test_the_advice_names_what_takes_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", "m.onnx", "--output", "result.json"]) == 2
    assert "--output does not apply to --engine; it is an option of --insert-nms\n" in capsys.readouterr().err
    assert main(["--encoder-study", "--decoder-study", "w.pth", "--batch", "2"]) == 2
    assert "--batch does not apply to --decoder-study and --encoder-study; it" in capsys.readouterr().err
    assert main(["--engine", "m.onnx", "--runs", "100", "--duration", "2"]) == 2
    assert "--runs and --duration both say how long to measure" in capsys.readouterr().err


def test_options_of_several_studies_may_be_mixed() -> None:
    request = parse(["--engine", "m.onnx", "--batch", "2", "--encoder-study", "--encoders", "A", "--runs", "100"])
    request.check()
    assert request.verbs == ("engine", "encoder_study")
    assert request.arguments.encoder_study == "r50"


def test_the_command_that_is_kept_names_files_without_their_folders() -> None:
    line = ["--engine", "/home/me/m.onnx", "--images", "/data/val/*.jpg", "--images", "..", "--against", "/x/y.onnx"]
    request = parse([*line, "--runs", "5", "--json", str(Path.home() / "a.json")])
    assert request.command() == [
        "rtdetr-bench", "--engine", "m.onnx", "--against", "y.onnx", "--images", "*.jpg", "--images", "..",
        "--runs", "5", "--json", "a.json",
    ]  # fmt: skip
    values = request.values()
    assert (values["engine"], values["against"], values["runs"]) == ("m.onnx", ["y.onnx"], 5)
    assert "/" not in str(values)
    assert "output" not in values
    assert parse(["--accuracy", "v/a.json", "--study"]).command() == ["rtdetr-bench", "--accuracy", "a.json", "--study"]

"""rtdetr-export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from rtdetr_export.cli import build_parser, main


def test_the_clients_command_writes_beside_the_weights(
    r18_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "r18.pth"
    shutil.copy(r18_checkpoint, weights)
    assert main(["--weights", str(weights), "--layers", "2"]) == 0
    text = capsys.readouterr().out
    written = tmp_path / "r18-l2-640x640-fp32.onnx"
    assert written.exists()
    assert f"wrote {written}" in text
    assert "r18, 2 decoder layers, 640x640, batch 1, fp32, 3 classes" in text
    assert "parity with torch" in text


def test_variants_are_printed_beside_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--variants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8
    assert "a multiply-add is two operations" in lines[0]
    assert lines[5].split() == ["r50", "6", "of", "6", "42.92", "42", "135.7", "136"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none.pth"], "none.pth does not exist"),
        (["--weights", "{weights}", "--layers", "9"], "9 decoder layers asked for, but r18 has 3: choose 1 to 3"),
        (["--weights", "{weights}", "--size", "600"], "height 600 is not a multiple of 32"),
        (["--weights", "{weights}", "--size", "abc"], "size 'abc' is not understood"),
        (["--weights", "{weights}", "--batch", "many"], "batch 'many' is not understood"),
        (["--weights", "{weights}", "--variant", "r20"], "unknown variant 'r20'"),
        (["--weights", "{weights}", "--classes", "{weights}.txt"], "can't read class names"),
        (["--weights", "{weights}", "--queries", "400"], "choose 1 to 300"),
        (["--weights", "{weights}", "--opset", "20"], "opset 20 is refused"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, r18_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(r18_checkpoint.parent.iterdir())
    assert main([item.format(weights=r18_checkpoint) for item in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-export: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(r18_checkpoint.parent.iterdir()) == before


def test_class_names_from_a_file_go_into_the_model(
    r18_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtdetr_deploy import Predictor

    names, output = tmp_path / "names.txt", tmp_path / "m.onnx"
    names.write_text("a\nb\nc\n")
    command = ["--weights", str(r18_checkpoint), "--classes", str(names), "--output", str(output), "--size", "64"]
    assert main([*command, "--no-verify"]) == 0
    assert Predictor(output).class_names == ("a", "b", "c")
    assert "not verified (--no-verify)" in capsys.readouterr().out


def test_missing_torch_is_named(
    r18_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["--weights", str(r18_checkpoint)]) == 2
    error = capsys.readouterr().err
    assert "exporting needs onnxscript, which is not installed: pip install '" in error
    assert "'rtdetr" not in error


def test_help_shows_defaults() -> None:
    text = " ".join(build_parser().format_help().split())
    assert "what the checkpoint names, else" in text
    assert "(default: 300)" in text

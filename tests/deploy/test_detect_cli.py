"""rtdetr-detect: images, options and messages."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rtdetr_deploy import ImageError, Predictor, find_images
from rtdetr_deploy.cli.detect import build_parser, main
from rtdetr_deploy.cli.detect_files import Summary

pytest_plugins = ("detect_folder",)


def test_pictures_json_and_summary_are_written(
    small_onnx: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, lines = tmp_path / "out", tmp_path / "found.jsonl"
    status = main([str(small_onnx), str(folder), "--output", str(output), "--json", str(lines), "--threshold", "0.1"])
    assert status == 0
    assert sorted(path.name for path in output.iterdir()) == ["a-2.jpg", "a.jpg", "b.png"]
    assert Image.open(output / "b.png").size == (120, 90)
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [Path(entry["image"]).name for entry in entries] == ["a.jpg", "b.png", "a.jpg"]
    assert (entries[0]["width"], entries[0]["height"]) == (120, 90)
    text = capsys.readouterr().out
    total = sum(len(entry["detections"]) for entry in entries)
    assert f"3 images, {total} detections" in text
    for stage in ("load", "prepare", "infer", "decode", "draw"):
        assert stage in text


def test_a_broken_image_is_reported_and_skipped(
    small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    assert main([str(small_onnx), str(folder)]) == 1
    streams = capsys.readouterr()
    assert "rtdetr-detect: skipped: " in streams.err
    assert "broken.jpg" in streams.err
    assert "3 images, 1 skipped" in streams.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{folder}/none.jpg"], "does not exist"),
        (["{model}x", "{folder}"], "not a model format known here"),
        (["{model}", "{folder}", "--threshold", "2"], "--threshold is 2.0, expected a number from 0 to 1"),
        (["{model}", "{folder}", "--classes", "blue"], "no class 'blue'"),
        (["{model}", "{folder}", "--output", "{folder}"], "would overwrite"),
        (["{model}", "{folder}/sub/a.jpg", "{folder}/a.jpg", "--output", "{folder}"], "would overwrite"),
        (["{model}", "{folder}", "--json", "{folder}/a.jpg"], "--json would overwrite the input"),
        (["{model}", "{folder}", "--json", "{model}"], "--json would overwrite the input"),
        (["{model}", "{folder}", "--output", "{folder}/b.png"], "can't write"),
        (["{model}", "{folder}", "--json", "{folder}"], "a folder of that name exists"),
        (["{model}", "{folder}", "--class-names", "{folder}/none"], "can't read class names"),
    ],
)
def test_wrong_input_gives_one_line_and_status_2(
    arguments: list[str], message: str, small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert main([item.format(model=small_onnx, folder=folder) for item in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rtdetr-detect: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_pictures_of_an_earlier_run_are_not_images(
    small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([str(small_onnx), str(folder), "--output", str(folder / "annotated")]) == 0
        assert "3 images, " in capsys.readouterr().out
    assert len(list((folder / "annotated").iterdir())) == 3


def test_interrupts_before_the_first_image_end_in_one_line(
    small_onnx: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "warmup", interrupt)
    assert main([str(small_onnx), str(folder)]) == 130
    assert capsys.readouterr().err == "rtdetr-detect: interrupted; what was done is kept\n"


def test_help_shows_defaults() -> None:
    text = build_parser().format_help()
    assert "(default: 0.5)" in text
    assert "(default: opencv)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "{folder}"], "the name is empty"),
        (["{model}", "{folder}", "--output", ""], "the name is empty"),
        (["{model}", "{folder}", "--json", ""], "the name is empty"),
        (["{model}", "{folder}", "--classes", ","], "argument --classes: --classes is empty; name classes or indices"),
        (["{model}", "{folder}", "--size", "big"], "size 'big' is not understood; write 640 or HEIGHTxWIDTH"),
        (["{model}", "{folder}", "--size", ""], "size '' is not understood"),
        (["{model}", "{folder}", "--runtime", "caffe"], "invalid choice: 'caffe'"),
    ],
)
def test_values_that_can_not_be_read_are_refused(
    arguments: list[str], message: str, small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([item.format(model=small_onnx, folder=folder) for item in arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the name of an image is empty"),
        (["{folder}", "--max-pixels", "0"], "--max-pixels is 0, expected a whole number from 1"),
        (["{folder}", "--threads", "100000"], "--threads is 100000, expected a whole number from 1 to"),
        (["{folder}", "--font", "{folder}/b.png"], "can't read the font"),
        (["{folder}", "--output", "{folder}/loop"], "loop is not a folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], message: str, small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loop").symlink_to("loop")
    assert main([str(small_onnx), *(item.format(folder=folder) for item in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_control_characters_of_names_do_not_reach_the_terminal(
    small_onnx: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"red\n\x1b[31mwhite\nplatelet\n")
    odd = folder / "new\nline\x1b[2J.png"
    odd.write_bytes((folder / "b.png").read_bytes())
    (folder / "bad\x1b[2J.jpg").write_bytes(b"nothing")
    assert main([str(small_onnx), str(folder), "--threshold", "0", "--class-names", str(names)]) == 1
    streams = capsys.readouterr()
    assert "\x1b" not in streams.out + streams.err
    assert "new\\nline\\x1b[2J.png: " in streams.out
    assert "\\x1b[31mwhite" in streams.out


def test_one_detection_is_not_called_detections() -> None:
    summary = Summary(done=1)
    summary.found["red"] += 1
    assert str(summary) == "1 image, 1 detection: 1 red"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_folders_that_can_not_be_read_are_reported_and_counted(
    small_onnx: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = os.scandir

    def scandir(path: Any = ".") -> Any:  # as for a user without permission; root may read everything
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main([str(small_onnx), str(folder)]) == 1
    streams = capsys.readouterr()
    assert f"skipped: can't open the folder {folder / 'sub'}: Permission denied" in streams.err
    assert "2 images, 1 skipped" in streams.out
    with pytest.raises(ImageError, match=r"can't open the folder .*sub: Permission denied"):
        find_images([folder])


def test_a_picture_may_come_from_standard_input_or_a_descriptor(small_onnx: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "rtdetr_deploy.cli.detect", str(small_onnx), "/dev/stdin"]
    with subprocess.Popen(["cat", str(folder / "b.png")], stdout=subprocess.PIPE) as source:
        done = subprocess.run(command, stdin=source.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 image, " in done.stdout


def test_pictures_of_an_earlier_run_are_not_found_by_patterns(
    small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(small_onnx), f"{folder}/**/*.png", "--output", str(folder / "annotated")]
    counts = []
    for _ in range(2):
        assert main(command) == 0
        counts.append(capsys.readouterr().out.splitlines()[-2].split(",")[0])
    assert counts[0] == counts[1]

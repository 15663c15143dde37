"""rtdetr-detect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rtdetr_deploy.cli import build_parser, main


@pytest.fixture
def folder(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/a.jpg"):
        Image.fromarray(picture).save(folder / name)
    return folder


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


def test_json_on_standard_output_is_alone_there(
    small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main([str(small_onnx), str(folder / "b.png"), "--json", "-", "--classes", "white,2", "--threshold", "0"]) == 0
    )
    streams = capsys.readouterr()
    (entry,) = (json.loads(line) for line in streams.out.splitlines())
    assert {found["name"] for found in entry["detections"]} == {"white", "platelet"}
    assert "1 image, " in streams.err


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
        (["{model}", "{folder}", "--threshold", "2"], "threshold is 2.0, expected a number from 0 to 1"),
        (["{model}", "{folder}", "--classes", "blue"], "no class 'blue'"),
        (["{model}", "{folder}", "--classes", ","], "--classes is empty"),
        (["{model}", "{folder}", "--size", "big"], "size 'big' is not understood"),
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


def test_interrupt_keeps_what_was_done(
    small_onnx: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtdetr_deploy.predictor import Predictor

    original, calls = Predictor.load, []

    def load(self: Predictor, images: Any, **options: Any) -> Any:
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, images, **options)

    monkeypatch.setattr(Predictor, "load", load)
    lines = tmp_path / "found.jsonl"
    assert main([str(small_onnx), str(folder), "--json", str(lines)]) == 130
    assert len(lines.read_text().splitlines()) == 2
    assert "what was done is kept" in capsys.readouterr().err


def test_pictures_of_an_earlier_run_are_no_images(
    small_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([str(small_onnx), str(folder), "--output", str(folder / "annotated")]) == 0
        assert "3 images, " in capsys.readouterr().out
    assert len(list((folder / "annotated").iterdir())) == 3


def test_a_named_pipe_gets_the_lines_and_stays_a_pipe(small_onnx: Path, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_text)
        assert main([str(small_onnx), str(folder / "b.png"), "--json", str(pipe)]) == 0
        assert json.loads(reader.result(30))["width"] == 120
    assert pipe.is_fifo()


def test_names_that_are_not_utf_8_go_through(small_onnx: Path, folder: Path, tmp_path: Path) -> None:
    odd = os.fsencode(folder) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes((folder / "b.png").read_bytes())
    lines = tmp_path / "found.jsonl"
    command = [sys.executable, "-m", "rtdetr_deploy.cli", str(small_onnx), os.fsdecode(odd), "--json", str(lines)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(lines.read_text())["image"]) == odd


@pytest.mark.parametrize("arguments", [[], ["--json", "-"]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments: list[str], small_onnx: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "rtdetr_deploy.cli", str(small_onnx), str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in errors
    assert "Error" not in errors


def test_interrupts_before_the_first_image_end_in_one_line(
    small_onnx: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtdetr_deploy.predictor import Predictor

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "warmup", interrupt)
    assert main([str(small_onnx), str(folder)]) == 130
    assert capsys.readouterr().err == "rtdetr-detect: interrupted; what was done is kept\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("arguments", [[], ["--json", "-"]])
def test_a_device_without_space_gives_one_line(arguments: list[str], small_onnx: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "rtdetr_deploy.cli", str(small_onnx), str(folder), *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "rtdetr-detect: can't write standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_defaults() -> None:
    text = build_parser().format_help()
    assert "(default: 0.5)" in text
    assert "(default: opencv)" in text

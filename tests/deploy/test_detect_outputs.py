"""What rtdetr-detect writes, and what stays of it after errors, interrupts and signals."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rtdetr_deploy import ArtifactError, Predictor
from rtdetr_deploy.cli.detect import main
from rtdetr_deploy.cli.json_lines import _write_whole
from rtdetr_deploy.images.intake import Intake

pytest_plugins = ("detect_folder",)


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
    command = [
        sys.executable,
        "-m",
        "rtdetr_deploy.cli.detect",
        str(small_onnx),
        os.fsdecode(odd),
        "--json",
        str(lines),
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(json.loads(lines.read_text())["image"]) == odd


@pytest.mark.parametrize("arguments", [[], ["--json", "-"]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments: list[str], small_onnx: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "rtdetr_deploy.cli.detect", str(small_onnx), str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in errors
    assert "Error" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("arguments", [[], ["--json", "-"]])
def test_a_device_without_space_gives_one_line(arguments: list[str], small_onnx: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "rtdetr_deploy.cli.detect", str(small_onnx), str(folder), *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "rtdetr-detect: can't write standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_dev_stdout_is_standard_output_and_stays_what_it_is(small_onnx: Path, folder: Path, tmp_path: Path) -> None:
    link, printed = tmp_path / "stdout", tmp_path / "out.txt"
    link.symlink_to("/proc/self/fd/1")
    command = [sys.executable, "-m", "rtdetr_deploy.cli.detect", str(small_onnx), str(folder), "--json", str(link)]
    with printed.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert link.is_symlink()
    assert [json.loads(line)["width"] for line in printed.read_text().splitlines()] == [120, 120, 120]
    assert "3 images" in done.stderr


def test_json_follows_a_link(small_onnx: Path, folder: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old")
    link.symlink_to(real)
    assert main([str(small_onnx), str(folder), "--json", str(link)]) == 0
    assert link.is_symlink()
    assert len(real.read_text().splitlines()) == 3


def test_files_that_are_read_are_not_overwritten(
    small_onnx: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    assert main([str(small_onnx), str(folder), "--class-names", str(names), "--json", str(names)]) == 2
    assert f"--json would overwrite the input {names}; choose another file" in capsys.readouterr().err
    assert names.read_text() == "a\nb\nc\n"


def test_json_and_pictures_do_not_share_a_name(
    small_onnx: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o"
    for target, message in (
        (output / "a.jpg", "--json and an annotated picture both name"),
        (output, "would be a file where --output"),
    ):
        assert main([str(small_onnx), str(folder), "--output", str(output), "--json", str(target)]) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()


def test_a_picture_that_can_not_be_written_is_counted_and_its_json_kept(
    small_onnx: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ("b" * 251 + ".png")).write_bytes((folder / "b.png").read_bytes())  # the longest name fits
    (folder / "sub" / ("b" * 251 + ".png")).write_bytes((folder / "b.png").read_bytes())  # with "-2" it does not
    output, lines = tmp_path / "out", tmp_path / "found.jsonl"
    assert main([str(small_onnx), str(folder), "--output", str(output), "--json", str(lines)]) == 1
    streams = capsys.readouterr()
    assert "rtdetr-detect: not written: can't write" in streams.err
    assert "File name too long" in streams.err
    assert "5 images, 1 picture not written, " in streams.out
    assert len(lines.read_text().splitlines()) == 5
    assert len(list(output.iterdir())) == 4


def test_json_lines_are_kept_when_the_model_fails_later(
    small_onnx: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Predictor.infer, []

    def infer(self: Predictor, batch: Any, **options: Any) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise ArtifactError("broken")
        return original(self, batch, **options)

    monkeypatch.setattr(Predictor, "infer", infer)
    lines = tmp_path / "found.jsonl"
    assert main([str(small_onnx), str(folder), "--json", str(lines)]) == 2
    assert len(lines.read_text().splitlines()) == 2


def test_a_disk_that_fills_up_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 25:
                room = 25 - self.tell()
                if room == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(bytes(data)[:room])
            return super().write(data)

    with Full(str(path), "w") as file:
        _write_whole(file, "first line of 20 chs\n")
        with pytest.raises(OSError, match="No space"):
            _write_whole(file, "second line\n")
    assert path.read_text() == "first line of 20 chs\n"


def test_a_signal_keeps_the_lines_that_are_there(small_onnx: Path, folder: Path, tmp_path: Path) -> None:
    for number in range(200):
        (folder / f"{number:03}.png").symlink_to(folder / "b.png")
    lines = tmp_path / "found.jsonl"
    command = [
        sys.executable,
        "-u",
        "-m",
        "rtdetr_deploy.cli.detect",
        str(small_onnx),
        str(folder),
        "--json",
        str(lines),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "000.png: " in process.stdout.readline()
        process.terminate()
        errors = process.stderr.read()
    assert process.returncode == 143
    assert "rtdetr-detect: ended by SIGTERM; what was done is kept" in errors
    assert len([json.loads(line) for line in lines.read_text().splitlines()]) >= 1
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


def test_what_can_not_be_written_is_found_before_the_model_is_opened(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--output", str(folder / "b.png" / "x")], ["--json", str(folder / "b.png" / "x")]):
        assert main(["none.onnx", str(folder), *arguments]) == 2
        assert "can't write" in capsys.readouterr().err


def test_json_to_a_closed_standard_output_is_refused(small_onnx: Path, folder: Path) -> None:
    command = f'"{sys.executable}" -m rtdetr_deploy.cli.detect "{small_onnx}" "{folder}" --json - >&-'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "rtdetr-detect: --json - writes to standard output, which is closed; name a file\n"


def test_interrupt_keeps_what_was_done(
    small_onnx: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = Intake.load, []

    def load(self: Intake, image: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, image, *arguments, **options)

    monkeypatch.setattr(Intake, "load", load)
    lines = tmp_path / "found.jsonl"
    assert main([str(small_onnx), str(folder), "--json", str(lines)]) == 130
    assert len(lines.read_text().splitlines()) == 2
    assert "what was done is kept" in capsys.readouterr().err


def test_an_interrupt_before_anything_is_done_leaves_an_earlier_file(
    small_onnx: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Intake, "load", interrupt)
    lines = tmp_path / "found.jsonl"
    lines.write_text("earlier\n")
    assert main([str(small_onnx), str(folder), "--json", str(lines)]) == 130
    assert lines.read_text() == "earlier\n"

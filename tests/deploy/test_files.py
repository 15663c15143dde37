"""Writing files: whole or not at all, through links, into devices and pipes in place."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rtdetr_deploy.errors import ArtifactError, OutputError
from rtdetr_deploy.files import (
    atomic_write,
    check_writable,
    is_standard_output,
    refuse_overwriting,
    require_file,
    write_bytes,
)


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"can't write .*model.onnx: No space left on device"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_while_writing_leaves_no_half_written_file(tmp_path: Path) -> None:
    target = tmp_path / "sub" / "data.json"
    with pytest.raises(ValueError, match="on the way"), atomic_write(target) as beside:
        beside.write_text("half")
        raise ValueError("on the way")
    assert list(target.parent.iterdir()) == []


def test_an_error_about_another_file_is_not_called_one_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "data.json"):
        (tmp_path / "other").read_bytes()


def test_links_are_followed_when_a_file_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "real.json", tmp_path / "link.json"
    real.parent.mkdir()
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_link_to_an_open_descriptor_is_written_in_place(tmp_path: Path) -> None:
    link, printed = tmp_path / "stdout", tmp_path / "out.txt"
    link.symlink_to("/proc/self/fd/1")
    code = (
        "import pathlib, sys; from rtdetr_deploy.files import write_bytes; print('before'); "
        "write_bytes(pathlib.Path(sys.argv[1]), b'content\\n'); print('after')"
    )
    with printed.open("w") as out:
        subprocess.run([sys.executable, "-c", code, str(link)], stdout=out, check=True)
    assert link.is_symlink()
    assert printed.read_text() == "before\ncontent\nafter\n"


def test_a_pipe_gets_what_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        write_bytes(link, b"content")
        assert reader.result(30) == b"content"
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("a" * 251 + ".jpg")
    write_bytes(target, b"content")
    assert target.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [target]


def test_two_files_of_one_stem_can_be_written_at_once(tmp_path: Path) -> None:
    target = tmp_path / "data.json"
    with atomic_write(target) as first, atomic_write(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "last.pth"
    code = (
        "import os, pathlib, signal, sys; from rtdetr_deploy.files import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as beside:\n"
        "    beside.write_bytes(b'much longer than what comes after'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert ".part" in left.name
    write_bytes(target, b"new")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a/../model.onnx", "link.onnx", "hard.onnx"])
def test_an_output_that_is_an_input_is_refused(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    (tmp_path / "a").mkdir()
    (tmp_path / "link.onnx").symlink_to(model)
    (tmp_path / "hard.onnx").hardlink_to(model)
    with pytest.raises(OutputError, match=r"--json would overwrite the input .*model.onnx; choose another file"):
        refuse_overwriting({"--report": None, "--json": tmp_path / name}, [tmp_path / "other", str(model)])


def test_two_outputs_of_one_name_are_refused_but_not_a_device(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--json and --report both name .*/f; choose another file"):
        refuse_overwriting({"--json": tmp_path / "f", "--report": tmp_path / "." / "f"}, [])
    refuse_overwriting({"--json": Path(os.devnull), "--report": Path(os.devnull)}, [os.devnull])
    refuse_overwriting({"--json": tmp_path / "f", "--report": tmp_path / "g"}, [tmp_path / "h"])


def test_what_can_not_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for bad, message in (
        (tmp_path, "a folder of that name exists"),
        (tmp_path / "file" / "x.json", "file is not a folder|Not a directory"),
        (tmp_path / "file" / "sub" / "x.json", "Not a directory"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / ("a" * 256), "File name too long"),
        (tmp_path / "zero\0", "null byte"),
    ):
        with pytest.raises(OutputError, match=f"can't write .*({message})"):
            check_writable(bad)
    with pytest.raises(OutputError, match="file is not a folder"):
        check_writable(tmp_path / "file", folder=True)
    before = sorted(tmp_path.rglob("*"))
    check_writable(tmp_path / "new" / "sub" / "x.json")
    check_writable(tmp_path / "new", folder=True)
    check_writable(tmp_path / "file")
    check_writable(Path(os.devnull))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_found_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "x.json")


def test_a_pipe_is_not_opened_as_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="model.onnx is a pipe or a device, expected a regular file"):
        require_file(tmp_path / "model.onnx", ArtifactError)


def test_nowhere_is_not_standard_output(tmp_path: Path) -> None:
    assert not is_standard_output(Path(os.devnull))
    assert not is_standard_output(tmp_path / "none")


def test_files_of_another_owner_do_not_stop_or_flood_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that give every file to one user: what was made can't be told from somebody else's."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    for content in (b"one", b"two"):
        write_bytes(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]


def test_leftovers_that_can_not_be_opened_do_not_stop_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if str(path).endswith(".part.json") and not flags & os.O_EXCL:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest)

    with atomic_write(tmp_path / "a.json") as beside:
        leftover = beside
    leftover.write_bytes(b"of another user")
    monkeypatch.setattr(os, "open", refuse)
    write_bytes(tmp_path / "a.json", b"whole")
    assert (tmp_path / "a.json").read_bytes() == b"whole"
    assert leftover.read_bytes() == b"of another user"


def test_a_file_that_is_mounted_gets_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run -v $PWD/a.json:/a.json` gives it: it can be written, not replaced."""
    target = tmp_path / "a.json"
    target.touch()

    def busy(*_: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    write_bytes(target, b"whole")
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.touch()
    target.chmod(0o600)
    write_bytes(target, b"secret")
    assert target.stat().st_mode & 0o777 == 0o600

"""Which runtime opens what, and what is said where none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from rtdetr_deploy import ArtifactError, MissingPackageError, OptionError, Predictor, open_runtime
from rtdetr_deploy.runtimes import RUNTIMES, RuntimeOptions
from rtdetr_deploy.runtimes.options import cpu_or_cuda


def test_the_table_names_modules_and_extras_that_exist() -> None:
    from importlib.util import find_spec

    from rtdetr_deploy.packages import _requirements

    for name, entry in RUNTIMES.items():
        assert find_spec(f"rtdetr_deploy.runtimes.{entry.module}") is not None, name
        assert _requirements(entry.extra), name


def test_unknown_runtimes_list_the_known(small_onnx: Path) -> None:
    known = "expected one of onnxruntime, openvino, tensorrt, torch"
    with pytest.raises(OptionError, match=f"`runtime` is 'tflite', {known}"):
        open_runtime(small_onnx, "tflite")


@pytest.mark.parametrize(
    ("file", "runtime", "message"),
    [
        ("m.onnx", "tensorrt", "opens .engine, .plan, not m.onnx; `runtime` may be onnxruntime or openvino for it"),
        ("m.xml", "onnxruntime", "opens .onnx, not m.xml; `runtime` may be openvino for it"),
        ("m.engine", "openvino", "opens .xml, .onnx, not m.engine; `runtime` may be tensorrt for it"),
        ("m.onnx", "torch", "opens .pth, .pt, .safetensors, .bin, not m.onnx"),
        ("m.tflite", "onnxruntime", "opens .onnx, not m.tflite; no runtime opens such a file"),
    ],
)
def test_a_runtime_that_cannot_open_a_file_says_which_can(
    file: str, runtime: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=f'`runtime="{runtime}"` {message}'):
        open_runtime(tmp_path / file, runtime)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_checkpoints_are_not_run_unless_asked_for(suffix: str, tmp_path: Path) -> None:
    hint = rf'export it first: rtdetr-export --weights m{suffix} .*\(`runtime="torch"` runs it as it is\)'
    with pytest.raises(ArtifactError, match=hint):
        open_runtime(tmp_path / f"m{suffix}")
    with pytest.raises(ArtifactError, match="is a folder; name the model file in it"):
        open_runtime(tmp_path)


def test_empty_names_files_and_contents_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ArtifactError, match="the name of the model file is empty"):
        open_runtime("")
    with pytest.raises(ArtifactError, match=r"m.onnx is empty; export the model again"):
        open_runtime(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="the model is empty: it has no bytes"):
        open_runtime(b"")
    with pytest.raises(ArtifactError, match="the ONNX model is not a loadable ONNX model: its content is damaged"):
        open_runtime(b"\xff" * 40)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "m.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingPackageError, match="running models with OpenVINO needs openvino, .*pip install .*openvino"
    ):
        open_runtime(tmp_path / "m.xml")
    monkeypatch.delitem(sys.modules, "rtdetr_deploy.runtimes.eager", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match='`runtime="torch"` needs torch, .*pip install .*torch'):
        open_runtime(tmp_path / "m.pth", "torch")


def test_arguments_of_other_kinds_are_named(small_onnx: Path) -> None:
    for model in (None, 5):
        with pytest.raises(OptionError, match=f"`model` is {model}, expected a file's path, or its content as bytes"):
            open_runtime(cast("Any", model))
    with pytest.raises(OptionError, match=r"`options` is \{\}; expected RuntimeOptions"):
        open_runtime(small_onnx, options=cast("Any", {}))
    with pytest.raises(OptionError, match="`options` is RuntimeOptions.*; threads and device belong into it"):
        open_runtime(small_onnx, options=RuntimeOptions(threads=1), threads=2)


def test_only_checkpoints_are_given_a_size(small_onnx: Path) -> None:
    with pytest.raises(OptionError, match="`size` is for checkpoints; what onnxruntime opens has its own"):
        open_runtime(small_onnx, options=RuntimeOptions(size=(64, 64)))
    with pytest.raises(OptionError, match="`size` is 65x64, expected multiples of 32"):
        RuntimeOptions(size=(65, 64))


def test_the_predictor_runs_checkpoints_at_any_size(small_checkpoint: Path) -> None:
    with Predictor(small_checkpoint, runtime="torch", size=(96, 64)) as predictor:
        assert predictor.input_size == (96, 64)


def test_keywords_of_version_0_1_work_with_a_warning(small_onnx: Path) -> None:
    with pytest.warns(FutureWarning, match="threads and device of open_runtime: give them as options=RuntimeOptions"):
        runtime = open_runtime(small_onnx, threads=1, device="cpu")
    assert cast("Any", runtime)._session.get_session_options().intra_op_num_threads == 1
    runtime.close()


@pytest.mark.parametrize("device", ["", "cuda:1:2;", "-cpu", 1, "ü"])
def test_devices_that_no_runtime_has_are_refused(device: Any) -> None:
    with pytest.raises(OptionError, match="`device` is .*, expected cpu, cuda, cuda:1, or a device of OpenVINO"):
        RuntimeOptions(device=device)


@pytest.mark.parametrize("threads", [0, 10**9, True, 2.0, "2"])
def test_numbers_of_threads_that_make_no_sense_are_refused(threads: Any) -> None:
    with pytest.raises(OptionError, match="`threads` is .*, expected a whole number from 1 to"):
        RuntimeOptions(threads=threads)


def test_devices_have_a_number_where_they_are_gpus() -> None:
    assert [cpu_or_cuda(text, "torch") for text in ("cpu", "CUDA", "cuda:0", "Cuda:12")] == [
        ("cpu", None),
        ("cuda", None),
        ("cuda", 0),
        ("cuda", 12),
    ]
    for text in ("cpu:0", "cuda:", "cuda:x", "cuda:-1", "gpu"):
        with pytest.raises(OptionError, match="but torch runs on cpu, cuda or cuda:1"):
            cpu_or_cuda(text, "torch")
        with pytest.raises(OptionError, match="but TensorRT runs on cuda or cuda:1"):
            cpu_or_cuda(text, "TensorRT", cpu=False)


def test_a_checkpoint_and_a_folder_of_one_run_in_torch(r18_checkpoint: Path, tmp_path: Path) -> None:
    runtime = open_runtime(r18_checkpoint, "torch")
    assert runtime.inputs[0].shape == (None, 3, 640, 640)
    assert runtime.info is not None
    assert (runtime.info.source, len(runtime.info.source_digest)) == ("cells.pth", 64)
    with pytest.raises(
        ArtifactError, match=r"cells.pth takes images float32\[\?, 3, 640, 640\], not float32\[1, 3, 64"
    ):
        runtime.run({"images": np.zeros((1, 3, 64, 64), np.float32)})
    from rtdetr_deploy import CheckpointError

    with pytest.raises(CheckpointError, match="is a folder without"):
        open_runtime(tmp_path, "torch")

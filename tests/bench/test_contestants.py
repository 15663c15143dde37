"""Models with a runtime of their own, timed beside others."""

from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rtdetr_bench.comparison import compare_models
from rtdetr_bench.models.contestant import Contestant, contestant_argument
from rtdetr_bench.options import LatencyOptions, RunOptions, TimingOptions
from rtdetr_deploy import OptionError
from rtdetr_deploy.runtimes import RuntimeOptions


def test_a_text_names_file_runtime_and_settings() -> None:
    assert Contestant.parse("a/r18.onnx") == Contestant(Path("a/r18.onnx"))
    assert Contestant.parse("r18.onnx@openvino") == Contestant(Path("r18.onnx"), "openvino")
    full = Contestant.parse("a/r18.onnx@openvino,threads=1,device=cpu")
    assert full == Contestant(Path("a/r18.onnx"), "openvino", {"threads": 1, "device": "cpu"})
    assert str(full) == "r18.onnx@openvino,threads=1,device=cpu"
    assert Contestant.of(full) is full
    assert Contestant.of("r18.onnx@torch.onnx/x.onnx").path == Path("r18.onnx@torch.onnx/x.onnx")


def test_a_file_that_is_called_so_comes_first(tmp_path: Path) -> None:
    (tmp_path / "model@openvino").write_bytes(b"")
    assert Contestant.parse(f"{tmp_path}/model@openvino").runtime is None


def test_settings_of_a_contestant_go_before_those_of_all() -> None:
    run = RunOptions(runtime="onnxruntime", where=RuntimeOptions(threads=2, device="cpu"))
    assert Contestant(Path("a.onnx")).apply(run) == run
    own = Contestant(Path("a.onnx"), "openvino", {"threads": 1}).apply(run)
    assert own == replace(run, runtime="openvino", where=RuntimeOptions(threads=1, device="cpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.onnx@tflite", "`runtime` is 'tflite', expected one of"),
        (
            "a.onnx@openvino,thread=1",
            "'thread=1' is not understood, expected NAME=VALUE with a name of device, threads",
        ),
        ("a.onnx@openvino,threads", "'threads' is not understood"),
        ("a.onnx@openvino,threads=two", "'two' is not a value of threads"),
        ("a.engine@tensorrt,blocking_sync=perhaps", "'perhaps' is not a value of blocking_sync"),
        ("a.onnx@openvino,threads=-1", "`threads` is -1"),
        ("a.xml@onnxruntime", "a.xml@onnxruntime: onnxruntime opens .onnx"),
        ("", "the name is empty"),
    ],
)
def test_what_is_not_understood_is_said(text: str, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        contestant_argument(text)


def test_settings_without_a_runtime_are_refused() -> None:
    with pytest.raises(OptionError, match="`where` needs a `runtime`"):
        Contestant(Path("a.onnx"), None, {"threads": 1})


def test_one_file_is_timed_by_two_runtimes_in_one_run(small_export: Any) -> None:
    pytest.importorskip("openvino")
    file = small_export("contestants.onnx", verify=False)
    options = LatencyOptions(file, (f"{file}@openvino,threads=1",), timing=TimingOptions(runs=3, warmup=1))
    compared = compare_models(replace(options, run=RunOptions(runtime="onnxruntime")))
    runtimes = {one.name: one.facts["runtime"].split()[0] for one in compared.latencies}
    assert runtimes == {"contestants.onnx": "ONNX", "contestants.onnx@openvino,threads=1": "OpenVINO"}
    assert [pair.name for pair in compared.pairs] == ["contestants.onnx@openvino,threads=1"]


def test_a_runtime_for_all_that_none_would_use_is_refused(small_export: Any) -> None:
    file = small_export("contestants.onnx", verify=False)
    options = LatencyOptions(f"{file}@onnxruntime", run=RunOptions(runtime="openvino"))
    with pytest.raises(OptionError, match='`runtime="openvino"` would be ignored: every model names its own'):
        compare_models(options)

"""One contract for every runtime: ONNX Runtime, OpenVINO, torch, and TensorRT (over doubles, where no GPU is)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from openings import HEIGHT, WIDTH, WRONG_FEEDS, Opening, feed_of
from rtdetr_deploy import ArtifactError, ArtifactInfo, DeviceError, OptionError, Predictor, open_runtime
from rtdetr_deploy.errors import MissingPackageError
from rtdetr_deploy.runtimes import RUNTIMES, ParallelRuntime, Runtime, RuntimeOptions
from rtdetr_deploy.runtimes.cores import usable_cores
from rtdetr_deploy.runtimes.processor import instruction_sets

pytest_plugins = ("engine_world",)

OPENVINO: dict[str, dict[str, Any]] = {
    "openvino": {},
    "openvino-xml": {},
    "openvino-throughput": {"hint": "throughput"},
    "openvino-slots": {"slots": 3},
    "openvino-bf16": {"precision": "bf16"},
}
CASES = ("onnxruntime", *OPENVINO, "torch", "tensorrt")


@pytest.fixture(params=CASES)
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """A model file of each runtime; of dynamic batch, with the same weights."""
    case: str = request.param
    if case == "torch":
        return Opening(request.getfixturevalue("tiny_checkpoint"), "torch", "cpu", "cuda", takes_threads=True)
    if case == "openvino-xml":
        return Opening(request.getfixturevalue("small_xml"), None, "cpu", "GPU", takes_threads=True)
    onnx: Path = request.getfixturevalue("dynamic_onnx")
    if case == "onnxruntime":
        return Opening(onnx, None, "cpu", "cuda", takes_threads=True)
    if case in OPENVINO:
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
        if case == "openvino-bf16" and "BF16" not in (instruction_sets() or ()):
            pytest.skip("this processor has no BF16")
        return Opening(onnx, "openvino", "CPU", "GPU", takes_threads=True, how=OPENVINO[case])
    request.getfixturevalue("world")
    return Opening(_make_engine(onnx, tmp_path), None, "cuda", "cpu", takes_threads=False, max_batch=4)


@pytest.fixture(scope="session")
def tiny_checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the small model was exported from, with its input size."""
    import torch

    content = torch.load(small_checkpoint, weights_only=True)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({**content, "input_size": [HEIGHT, WIDTH]}, path)
    return path


def _make_engine(onnx: Path, folder: Path) -> Path:
    import fake_tensorrt
    from rtdetr_deploy.runtimes.trt.sidecar import EngineInfo, sidecar_path

    info = open_runtime(onnx).info
    assert info is not None
    path = folder / "dynamic.engine"
    path.write_bytes(fake_tensorrt.MAGIC + onnx.read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    stored = EngineInfo(info, fake_tensorrt.__version__, "Tesla T4", "7.5", (1, 1, 4), "", digest)
    sidecar_path(path).write_text(stored.to_json())
    return path


@pytest.fixture(scope="session")
def kept_open() -> Iterator[dict[str, Runtime]]:
    """Runtimes that the tests that only run them share."""
    opened: dict[str, Runtime] = {}
    yield opened
    for one in opened.values():
        one.close()


@pytest.fixture
def runtime(opening: Opening, kept_open: dict[str, Runtime]) -> Iterator[Runtime]:
    if opening.path.suffix == ".engine":  # its doubles count at the end of each test what was not given back
        opened = opening.open()
        yield opened
        opened.close()
    else:
        key = str(opening)
        if key not in kept_open:
            kept_open[key] = opening.open()
        yield kept_open[key]


def test_every_runtime_is_in_the_suite() -> None:
    assert {case.partition("-")[0] for case in CASES} == set(RUNTIMES)


def test_it_tells_what_it_runs(runtime: Runtime, opening: Opening) -> None:
    assert isinstance(runtime, Runtime)
    assert runtime.file == opening.path.name
    assert isinstance(runtime.info, ArtifactInfo)
    assert runtime.info.class_names == ("red", "white", "platelet")
    assert (runtime.info.height, runtime.info.width) == (HEIGHT, WIDTH)
    assert runtime.max_batch == opening.max_batch
    assert [spec.name for spec in runtime.inputs] == ["images"]
    assert runtime.inputs[0].shape[0] is None
    assert all(isinstance(value, str) for pair in runtime.metadata.items() for value in pair)
    labels = [spec for spec in runtime.outputs if spec.name == "labels"]
    assert all(spec.classes in (3, None) for spec in labels)


@pytest.mark.parametrize("rows", [1, 3])
def test_outputs_are_what_it_says(rows: int, runtime: Runtime) -> None:
    outputs = runtime.run(feed_of(runtime, rows))
    assert list(outputs) == [spec.name for spec in runtime.outputs]
    for spec in runtime.outputs:
        array = outputs[spec.name]
        assert array.dtype == spec.dtype
        assert array.shape[0] == rows
        assert all(axis in (None, side) for axis, side in zip(spec.shape, array.shape, strict=True))


def test_detections_are_those_of_onnx_runtime(opening: Opening, small_onnx: Path, picture: Any) -> None:
    with Predictor(opening.open(), 0.0) as one, Predictor(small_onnx, 0.0) as other:
        found, expected = one.detect(picture), other.detect(picture)
        if one.arithmetic == "bf16":
            assert np.abs(found.scores - expected.scores).max() < 0.05
            return
        assert np.abs(found.scores - expected.scores).max() < 1e-4
        assert found.labels[:20].tolist() == expected.labels[:20].tolist()
        assert np.abs(found.boxes[:20] - expected.boxes[:20]).max() < 0.05


def test_outputs_belong_to_the_caller(opening: Opening) -> None:
    runtime = opening.open()
    first = runtime.run(feed_of(runtime))
    kept = {name: array.copy() for name, array in first.items()}
    second = runtime.run(feed_of(runtime, seed=1))
    assert all(np.array_equal(kept[name], first[name]) for name in kept)
    assert not np.array_equal(second["boxes"], first["boxes"])
    runtime.close()
    for array in first.values():
        array[:] = 0


def test_inputs_may_be_views_and_are_only_read(runtime: Runtime) -> None:
    feed = feed_of(runtime, 2)
    expected = runtime.run(feed)
    for view in (_read_only(feed["images"]), np.asfortranarray(feed["images"]), np.repeat(feed["images"], 2, 0)[::2]):
        before = view.copy()
        outputs = runtime.run({"images": view})
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
        assert np.array_equal(view, before)


def _read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def test_threads_get_the_answers_that_one_gets(runtime: Runtime) -> None:
    feeds = [feed_of(runtime, 1 + seed % 2, seed) for seed in range(4)]
    expected = [runtime.run(feed) for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(runtime.run, feeds * 2))
    for index, outputs in enumerate(found):
        assert all(np.array_equal(outputs[name], array) for name, array in expected[index % 4].items())


@pytest.mark.parametrize("case", WRONG_FEEDS)
def test_other_inputs_than_it_says_are_refused(case: str, runtime: Runtime, opening: Opening) -> None:
    feed = WRONG_FEEDS[case](feed_of(runtime))
    with pytest.raises(ArtifactError, match=rf"{opening.path.name} takes images( \w+\[\?, .*\])?, not ") as caught:
        runtime.run(feed)
    assert "\n" not in str(caught.value)
    assert len(runtime.run(feed_of(runtime))["boxes"]) == 1  # and it still works


def test_batches_above_the_maximum_are_refused(runtime: Runtime) -> None:
    if runtime.max_batch is None:
        assert len(runtime.run(feed_of(runtime, 6))["boxes"]) == 6
        return
    assert len(runtime.run(feed_of(runtime, runtime.max_batch))["boxes"]) == runtime.max_batch
    with pytest.raises(ArtifactError, match=f"batch {runtime.max_batch + 1} is outside the range of"):
        runtime.run(feed_of(runtime, runtime.max_batch + 1))


def test_closing_twice_is_harmless_and_running_then_is_an_error(opening: Opening) -> None:
    runtime = opening.open()
    runtime.run(feed_of(runtime))
    runtime.close()
    runtime.close()
    with pytest.raises(ArtifactError, match=rf"{opening.path.name} is closed; open it again"):
        runtime.run(feed_of(runtime))


def test_the_device_is_the_one_that_was_named(opening: Opening) -> None:
    runtime = opening.open(device=opening.device)
    arithmetic = ", BF16" if opening.how.get("precision") == "bf16" else ""
    assert runtime.name.endswith(f"({opening.device.upper()}{arithmetic})") or "Tesla T4" in runtime.name
    runtime.close()


def test_a_device_that_is_not_there_is_never_replaced(opening: Opening) -> None:
    if opening.other_device == "cuda" and _has_cuda():
        pytest.skip("this machine has that device")
    with pytest.raises((DeviceError, MissingPackageError, OptionError)) as caught:
        opening.open(device=opening.other_device)
    assert opening.other_device.upper() in str(caught.value).upper()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_devices_of_another_kind_are_refused(opening: Opening) -> None:
    with pytest.raises(OptionError, match="`device` is 'tpu', but .* runs on "):
        opening.open(device="tpu")


def test_threads_are_honoured_or_refused(opening: Opening) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        if opening.takes_threads:
            threads = opening.how.get("slots", 1)  # a thread for each call
            runtime = opening.open(threads=threads)
            assert len(runtime.run(feed_of(runtime))["boxes"]) == 1
            assert _threads_of(runtime) == min(threads, usable_cores())
            runtime.close()
        else:
            with pytest.raises(OptionError, match="`threads` is not for engines"):
                opening.open(threads=1)
    finally:
        torch.set_num_threads(before)


def _threads_of(runtime: Any) -> int:
    """Return the number of threads that the library itself tells."""
    if runtime.name.startswith("ONNX"):
        return int(runtime._session.get_session_options().intra_op_num_threads)
    if runtime.name.startswith("OpenVINO"):
        return int(runtime._compiled.get_property("INFERENCE_NUM_THREADS"))
    import torch

    return torch.get_num_threads()


def test_the_content_of_a_file_opens_like_the_file(opening: Opening) -> None:
    name = opening.runtime or next(key for key, known in RUNTIMES.items() if known.opens(opening.path))
    if opening.path.suffix in (".pth", ".xml"):
        kind = (
            r"`runtime=\"torch\"` opens files" if name == "torch" else "can't be loaded by OpenVINO|content is damaged"
        )
        with pytest.raises((OptionError, ArtifactError), match=kind):
            open_runtime(opening.path.read_bytes(), name)
        return
    file, content = opening.open(), open_runtime(opening.path.read_bytes(), name, RuntimeOptions(**opening.how))
    feed = feed_of(file)
    expected, outputs = file.run(feed), content.run(feed)
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    assert (content.inputs, content.metadata) == (file.inputs, file.metadata)
    file.close()
    content.close()


def test_calls_run_side_by_side_in_as_many_slots_as_it_has(opening: Opening, runtime: Runtime) -> None:
    if not isinstance(runtime, ParallelRuntime):
        assert opening.runtime in (None, "torch")
        return
    assert runtime.slots <= opening.how.get("slots", runtime.slots)  # OpenVINO: no more than the CPU has cores
    assert runtime.slots >= (2 if opening.how.get("hint") == "throughput" and (os.cpu_count() or 1) > 1 else 1)
    feeds = [feed_of(runtime, seed=seed) for seed in range(3)]
    runtime.run_in_each_slot(feeds[0])
    expected = [runtime.run(feed) for feed in feeds]
    with ThreadPoolExecutor(runtime.slots) as pool:
        for index, outputs in enumerate(pool.map(runtime.run, feeds * 4)):
            assert all(np.array_equal(outputs[name], array) for name, array in expected[index % 3].items())


def test_the_predictor_streams_through_every_slot(opening: Opening, picture: Any) -> None:
    with Predictor(opening.open(), 0.0) as predictor:
        expected = predictor.detect(picture)
        found = list(predictor.stream([picture] * 6, batch=1))
        assert all(np.array_equal(one.boxes, expected.boxes) for one in found)
        assert predictor.info.runtime == predictor.runtime

"""Arrays of other libraries on the GPU: as frames, as inputs, and outputs that stay there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_tensorrt
from fake_cuda import FakeCuda
from fake_driver import COMPILER
from gpu_arrays import CUDA_HOST, ROCM, DlpackArray, GpuMemory, HostArray, InterfaceArray
from rtdetr_deploy import ArtifactError, Detections, DeviceError, ImageError, OptionError, Predictor, open_runtime
from rtdetr_deploy.images.frame import Frame, load_frame
from rtdetr_deploy.runtimes.trt.device_output import EngineOutput
from rtdetr_deploy.stream import Found, Unreadable

pytest_plugins = ("engine_world",)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, which stands in for the GPU's")

Place = Callable[..., GpuMemory]
KINDS: dict[str, Callable[[GpuMemory], Any]] = {
    "interface 2": lambda memory: InterfaceArray(memory, 2),
    "interface 3": InterfaceArray,
    "dlpack": DlpackArray,
}


@pytest.fixture
def place(world: fake_tensorrt.World) -> Iterator[Place]:
    """Put arrays on the GPU until the test ends."""
    placed: list[GpuMemory] = []

    def put(array: NDArray[Any], gpu: int = 0) -> GpuMemory:
        placed.append(GpuMemory(world.cuda, array, gpu))
        return placed[-1]

    yield put
    for memory in placed:
        memory.free()


@pytest.fixture
def predictor(world: fake_tensorrt.World, engine: Path, place: Place) -> Iterator[Predictor]:
    with Predictor(engine, 0.0, resizer="cuda") as predictor:
        yield predictor


@pytest.fixture
def producer(world: fake_tensorrt.World, place: Place) -> Iterator[int]:
    """A stream of another library."""
    _, stream = world.cuda.cudaStreamCreateWithFlags(1)
    yield stream
    world.cuda.cudaStreamSynchronize(stream)
    world.cuda.cudaStreamDestroy(stream)


def _same(one: Detections, other: Detections) -> bool:
    return np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)


LAYOUTS: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "rows without gaps": lambda picture: picture,
    "a part": lambda picture: picture[10:71, 7:100],
    "upside down and mirrored": lambda picture: picture[::-1, ::-1],
    "every other pixel": lambda picture: picture[::2, ::2],
    "planes": lambda picture: np.ascontiguousarray(picture.transpose(2, 0, 1)).transpose(1, 2, 0),
    "channels reversed": lambda picture: picture[:, :, ::-1],
    "gray": lambda picture: picture[:, :, 1],
    "gray with an axis": lambda picture: picture[:, :, 1:2],
    "with alpha": lambda picture: np.dstack([picture, picture[:, :, :1]]),
    "16 bits": lambda picture: picture.astype(np.uint16) * 256 + 77,
    "16 bits, big-endian, gray": lambda picture: (picture[:, :, 0].astype(np.uint16) * 256 + 77).astype(">u2"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_a_frame_on_the_gpu_gives_what_it_does_on_the_cpu(
    layout: str, color: Any, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    array = LAYOUTS[layout](picture)
    expected = predictor.detect(array, color=color)
    kinds = ("interface 3",) if array.dtype.byteorder == ">" else KINDS
    for kind in kinds:
        found = predictor.detect(KINDS[kind](place(array)), color=color)
        assert _same(found, expected), kind
        assert found.boxes.max() <= max(array.shape[:2])


def test_a_frame_on_the_gpu_is_resized_there_whatever_the_resizer(
    world: fake_tensorrt.World, engine: Path, place: Place, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but results crosses the bus."""
    directions: list[int] = []
    copy = world.cuda.cudaMemcpyAsync

    def note(target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        directions.append(kind)
        return copy(target, source, size, kind, stream)

    monkeypatch.setattr(world.cuda, "cudaMemcpyAsync", note)
    with Predictor(engine, 0.0, resizer="cuda") as other:
        expected = other.detect(picture)
    directions.clear()
    frame = InterfaceArray(place(picture))
    with Predictor(engine, 0.0, slots=1) as predictor:
        for _ in range(3):
            assert _same(predictor.detect(frame), expected)
        assert set(directions) == {world.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost}
        mixed = predictor.detect_batch([frame, picture, Frame(picture, rgb=False)])
        assert all(_same(found, expected) for found in mixed)


@pytest.mark.parametrize("kind", ["dlpack", "handle", "default", "no stream", "interface 2", "per thread"])
def test_work_that_the_caller_has_queued_is_done_first(
    kind: str,
    world: fake_tensorrt.World,
    predictor: Predictor,
    place: Place,
    producer: int,
    picture: NDArray[np.uint8],
) -> None:
    expected = predictor.detect(picture)
    memory = place(np.zeros_like(picture))
    frames: dict[str, tuple[int | None, Any]] = {
        "dlpack": (None, DlpackArray(memory, work=lambda: memory.write(picture))),
        "handle": (producer, InterfaceArray(memory, stream=producer)),
        "default": (1, InterfaceArray(memory, stream=1)),
        "no stream": (1, InterfaceArray(memory, stream=None)),
        "interface 2": (1, InterfaceArray(memory, 2)),
        "per thread": (2, InterfaceArray(memory, stream=2)),
    }
    stream, frame = frames[kind]
    if stream is not None:
        assert world.cuda.enqueue(stream, lambda: memory.write(picture))
    loaded = predictor.load([frame])
    later: list[str] = []
    if stream is not None:
        assert world.cuda.enqueue(stream, lambda: later.append("was waited for"))
    found = predictor.decode(predictor.infer(predictor.prepare(loaded)), [loaded[0].size])
    assert _same(found[0], expected)
    assert later == []
    if stream is not None:
        world.cuda._work_off(stream)


@pytest.mark.parametrize("what", ["frame", "batch"])
def test_memory_of_another_context_is_refused(
    what: str, world: fake_tensorrt.World, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    """As with pycuda.autoinit: the kernel runs in the primary context, where that memory is not mapped."""
    memory = place(picture if what == "frame" else np.zeros((1, 128, 160, 3), np.uint8))
    world.cuda.contexts_of[memory.start] = 4711
    use = predictor.detect if what == "frame" else predictor.infer
    message = "lies in another CUDA context than the GPU's primary one, where dynamic.engine runs: import pycuda.autopr"
    for make in KINDS.values():
        with pytest.raises(ImageError, match=message):
            use(make(memory))


@pytest.mark.parametrize("owner", [0, None])
def test_memory_that_belongs_to_no_context_is_read(
    owner: int | None, world: fake_tensorrt.World, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    """That of pools (0), and of virtual addresses, of which the driver may know none."""
    memory = place(picture)
    world.cuda.contexts_of[memory.start] = owner
    assert _same(predictor.detect(InterfaceArray(memory)), predictor.detect(picture))


@pytest.mark.parametrize("listed", [True, False])
def test_frames_are_taken_in_the_thread_that_knows_their_stream(
    listed: bool, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    """A list's by the caller, a generator's by the thread in which it runs: libraries have a current stream in each."""
    threads: list[int] = []
    made: list[int] = []

    class Noted(DlpackArray):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            threads.append(threading.get_ident())
            return super().__dlpack__(stream=stream)

    def camera() -> Iterator[Noted]:
        for row in range(6):
            made.append(threading.get_ident())
            yield Noted(place(np.roll(picture, row, 0)))

    frames = list(camera()) if listed else camera()
    results = list(predictor.stream_results(frames))
    assert threads == made
    assert (threads == [threading.get_ident()] * 6) == listed
    for row, result in enumerate(results):
        assert isinstance(result, Found)
        assert result.image is frames[row] if isinstance(frames, list) else isinstance(result.image, Noted)
        assert _same(result.detections, predictor.detect(np.roll(picture, row, 0)))


def test_an_array_is_held_until_the_call_is_done_and_no_longer(
    predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    import weakref

    frame = DlpackArray(place(picture))
    gone = weakref.ref(frame)
    loaded = predictor.load([frame])
    batch = predictor.prepare(loaded)
    del frame
    assert gone() is not None
    predictor.infer(batch)
    del loaded, batch
    assert gone() is None


def test_events_are_used_again(
    world: fake_tensorrt.World, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    frame = InterfaceArray(place(picture), 2)
    predictor.detect(frame)
    before = len(world.cuda.events)
    for _ in range(5):
        predictor.detect(frame)
    assert len(world.cuda.events) == before == 1


def test_the_gpu_of_the_engine_is_what_counts(
    world: fake_tensorrt.World, engine: Path, place: Place, picture: NDArray[np.uint8]
) -> None:
    world.cuda.gpus = 2
    here, there = place(picture), place(picture, gpu=1)
    with Predictor(engine, 0.0, device="cuda:1") as predictor:
        assert _same(predictor.detect(DlpackArray(there)), predictor.detect(InterfaceArray(there)))
        message = 'the image is on GPU 0, and dynamic.engine runs on GPU 1: open it with `device="cuda:0"`, or copy'
        for frame in (DlpackArray(here), InterfaceArray(here)):
            with pytest.raises(ImageError, match=message):
                predictor.detect(frame)
        results = list(predictor.stream_results([DlpackArray(there), DlpackArray(here), DlpackArray(there)]))
        assert [type(result) for result in results] == [Found, Unreadable, Found]
    assert world.cuda.current == 0


def test_what_is_not_an_image_on_the_gpu_is_refused(
    world: fake_tensorrt.World, predictor: Predictor, place: Place, picture: NDArray[np.uint8]
) -> None:
    memory = place(picture)
    bfloat, no_code = DlpackArray(memory), DlpackArray(memory)
    bfloat.code, no_code.code = (4, 16, 1), (1, 8, 4)
    cases: list[tuple[Any, str]] = [
        (InterfaceArray(memory, 1), "version 1 of its __cuda_array_interface__ is too old"),
        (InterfaceArray(memory, mask=InterfaceArray(memory)), "it is masked"),
        (InterfaceArray(memory, stream=0), "has stream 0, which is ambiguous"),
        (InterfaceArray(memory, data=(17, False)), r"does not lie in memory of a GPU \(address 0x11\)"),
        (InterfaceArray(memory, typestr="nonsense"), "the image can't be read from gpu_arrays.InterfaceArray: "),
        (InterfaceArray(memory, data=None), "the image can't be read from gpu_arrays.InterfaceArray: "),
        (DlpackArray(memory, ROCM), r"the image is not on an NVIDIA GPU \(DLPack's device type 10\)"),
        (bfloat, r"its type \(DLPack's code 4, 16 bits\) is not one of NumPy's"),
        (no_code, "its type .* is not one of NumPy's"),
        (DlpackArray(place(picture.astype(np.float32))), "image array is float32, expected uint8 or uint16; scale it"),
        (DlpackArray(place(picture.astype(np.int8))), "image array is int8"),
        (DlpackArray(place(picture[None])), r"image array has shape \(1, 90, 120, 3\), expected .* call detect_batch"),
        (DlpackArray(place(np.zeros((9, 9, 2), np.uint8))), r"image array has shape \(9, 9, 2\)"),
        (InterfaceArray(place(np.zeros((1, 1, 3), np.uint8)), shape=(0, 5, 3)), "has no pixels"),
    ]
    for frame, message in cases:
        with pytest.raises(ImageError, match=message):
            predictor.detect(frame)
    with pytest.raises(OptionError, match="`color` is 'hsv'"):
        predictor.detect(InterfaceArray(memory), color="hsv")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="expected several images"):
        predictor.detect_batch(InterfaceArray(memory))  # type: ignore[arg-type]


def test_what_its_library_refuses_is_told_in_its_words(predictor: Predictor, place: Place) -> None:
    class Refusing(DlpackArray):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    class Interface:
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get it on Variable that requires grad")

    with pytest.raises(ImageError, match=r"the image can't be read from .*Refusing: Can't export tensors"):
        predictor.detect(Refusing(place(np.zeros((2, 2, 3), np.uint8))))
    with pytest.raises(ImageError, match=r"Interface: Can't get it on Variable"):
        predictor.detect(Interface())
    with pytest.raises(ImageError, match="the image is ndarray, expected an array on a GPU"):
        predictor._runtime.receive(np.zeros((2, 2, 3), np.uint8), "the image")  # type: ignore[attr-defined]


class Meta(HostArray):
    """A tensor of torch's device "meta", which DLPack doesn't have."""

    def __dlpack_device__(self) -> Any:
        raise ValueError("Unknown device type meta for Dlpack")

    def __dlpack__(self, **asked: Any) -> Any:
        raise BufferError("Cannot pack tensors on meta")


def test_an_array_on_no_device_is_told_in_its_turn(
    predictor: Predictor, small_onnx: Path, picture: NDArray[np.uint8]
) -> None:
    meta = Meta(picture)
    message = r"the image can't be read from test_gpu_arrays.Meta: (Unknown device type|Cannot pack)"
    with Predictor(small_onnx, 0.0) as onnx:
        for one in (predictor, onnx):
            with pytest.raises(ImageError, match=message):
                one.detect(meta)
            images: list[Any] = [picture, meta, picture]
            for source in (images, iter(images)):
                results = list(one.stream_results(source))
                assert [type(result) for result in results] == [Found, Unreadable, Found]
            with pytest.raises(ImageError, match=r"the batch can't be read from test_gpu_arrays.Meta"):
                one.infer(meta)
    with pytest.raises(ImageError, match=message):
        load_frame(meta)
    with pytest.raises(ImageError, match="the image is Meta, expected an array on a GPU"):
        predictor._runtime.receive(meta, "the image")  # type: ignore[attr-defined]


def test_torchs_meta_tensors_are_refused(small_onnx: Path) -> None:
    torch = pytest.importorskip("torch")
    with (
        Predictor(small_onnx) as predictor,
        pytest.raises(ImageError, match=r"can't be read from torch.Tensor: .*meta"),
    ):
        predictor.detect(torch.zeros((4, 4, 3), dtype=torch.uint8, device="meta"))


def test_other_runtimes_say_how_to_copy(small_onnx: Path, place: Place, picture: NDArray[np.uint8]) -> None:
    frame = InterfaceArray(place(picture))
    message = (
        r"is on a GPU, and ONNX Runtime .* reads the CPU's memory; copy it first: x.cpu\(\) of torch, cupy.asnumpy"
    )
    with Predictor(small_onnx, 0.0) as predictor:
        with pytest.raises(ImageError, match=f"the image {message}"):
            predictor.detect(frame)
        results = list(predictor.stream_results([picture, frame]))
        assert [type(result) for result in results] == [Found, Unreadable]
        with pytest.raises(ImageError, match=f"the batch {message}"):
            predictor.infer(frame)
        with pytest.raises(OptionError, match="`on_device=True` is for TensorRT engines; small.onnx is run by ONNX"):
            predictor.infer(predictor.prepare(predictor.load([picture])), on_device=True)
        with pytest.raises(OptionError, match="`on_device=True` is for TensorRT engines"):
            predictor.warmup(on_device=True)
    with pytest.raises(ImageError, match="the image is on a GPU, and load_frame reads the CPU's memory"):
        load_frame(frame)


def test_a_frame_that_another_engine_received_is_refused(
    predictor: Predictor, engine: Path, small_onnx: Path, place: Place, picture: NDArray[np.uint8]
) -> None:
    frames = predictor.load([InterfaceArray(place(picture))])
    with Predictor(engine) as other, pytest.raises(ArtifactError, match="from its own preprocessor, not another one's"):
        other.infer(other.prepare(frames))
    with Predictor(small_onnx) as onnx, pytest.raises(ImageError, match='and `resizer="opencv"` reads the CPU'):
        onnx.prepare(frames)


def test_inputs_that_the_kernel_cannot_make_are_told(
    world: fake_tensorrt.World,
    engine: Path,
    place: Place,
    picture: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Predictor(engine) as predictor:
        monkeypatch.setattr(predictor._runtime, "resizers", frozenset())
        with pytest.raises(OptionError, match="frames on the GPU can't be used here, copy them to the CPU: "):
            predictor.detect(InterfaceArray(place(picture)))


@pytest.mark.parametrize("kind", [None, CUDA_HOST])
def test_arrays_in_the_cpus_memory_are_taken_by_every_runtime(
    kind: int | None,
    predictor: Predictor,
    small_onnx: Path,
    place: Place,
    picture: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind is not None:
        monkeypatch.setattr(HostArray, "__dlpack_device__", lambda self: (kind, 0))
    with Predictor(small_onnx, 0.0) as onnx:
        for one in (predictor, onnx):
            assert _same(one.detect(HostArray(picture), color="rgb"), one.detect(picture, color="rgb"))
        with pytest.raises(ImageError, match="image array is float32, expected uint8"):
            onnx.detect(HostArray(picture.astype(np.float32)))
        batch = onnx.prepare(onnx.load([picture]))
        assert isinstance(batch, np.ndarray)
        assert np.array_equal(onnx.infer(HostArray(batch))["scores"], onnx.infer(batch)["scores"])


def test_a_camera_may_fill_the_same_host_array_again(small_onnx: Path, picture: NDArray[np.uint8]) -> None:
    buffer = picture.copy()

    def camera() -> Iterator[HostArray]:
        for row in range(6):
            buffer[:] = np.roll(picture, row, 0)
            yield HostArray(buffer)

    with Predictor(small_onnx, 0.0) as predictor:
        for row, found in enumerate(predictor.stream(camera())):
            assert _same(found, predictor.detect(np.roll(picture, row, 0)))


def test_an_input_on_the_gpu_is_copied_there(
    world: fake_tensorrt.World, predictor: Predictor, place: Place, producer: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 160, 3), np.uint8)
    expected = predictor.infer(images)
    memory = place(np.zeros_like(images))
    for make in KINDS.values():
        memory.write(images)
        assert np.array_equal(predictor.infer(make(memory))["boxes"], expected["boxes"])
    memory.write(np.zeros_like(images))
    world.cuda.enqueue(producer, lambda: memory.write(images))
    found = predictor.infer(InterfaceArray(memory, stream=producer))
    assert np.array_equal(found["boxes"], expected["boxes"])


def test_an_input_on_the_gpu_is_checked(predictor: Predictor, engine: Path, place: Place) -> None:
    images = np.zeros((2, 128, 160, 3), np.uint8)
    cases = [
        (images.astype(np.float32), r"takes images uint8\[\?, 128, 160, 3\], not float32\[2, 128, 160, 3\]"),
        (images[:, :64], r"takes images uint8.*, not uint8\[2, 64, 160, 3\]"),
        (np.zeros((5, 128, 160, 3), np.uint8), "batch 5 is outside the range"),
        (
            np.zeros((2, 160, 128, 3), np.uint8).transpose(0, 2, 1, 3),
            r"takes images without gaps, not strides of \[61440, 3, 384, 1\] bytes; pass a contiguous copy",
        ),
    ]
    for array, message in cases:
        with pytest.raises(ArtifactError, match=f"dynamic.engine {message}|{message}"):
            predictor.infer(InterfaceArray(place(array)))
    other = open_runtime(engine)
    received = other.receive(InterfaceArray(place(images)), "the batch")  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"takes images as its own receive\(\) returns it"):
        predictor.infer(received)
    other.close()
    with pytest.raises(ArtifactError, match="is closed"):
        other.receive(InterfaceArray(place(images)), "the batch")  # type: ignore[attr-defined]


def test_outputs_that_stay_on_the_gpu_are_those_that_are_copied(
    world: fake_tensorrt.World, predictor: Predictor, picture: NDArray[np.uint8]
) -> None:
    batch = predictor.prepare(predictor.load([picture, picture[::-1]]))
    expected = predictor.infer(batch)
    for _ in range(3):  # plain, recorded, replayed
        outputs = predictor.infer(batch, on_device=True)
        assert outputs.keys() == expected.keys()
        for role, output in outputs.items():
            interface = output.__cuda_array_interface__
            assert world.cuda.cudaPointerGetAttributes(interface["data"][0])[1].type == 2
            assert (interface["version"], interface["stream"], interface["strides"]) == (3, None, None)
            assert (output.shape, output.dtype) == (expected[role].shape, expected[role].dtype)
            assert np.array_equal(np.asarray(output), expected[role])
            assert np.asarray(output, np.float64).dtype == np.float64
            assert len(output) == 2  # type: ignore[arg-type]
        sizes = [(90, 120)] * 2
        for one, other in zip(predictor.decode(outputs, sizes), predictor.decode(expected, sizes), strict=True):
            assert _same(one, other)
    with pytest.raises(ValueError, match="can't be had on the CPU without a copy"):
        output.__array__(copy=False)


@pytest.mark.parametrize("on_device", [False, True])
def test_warming_up_records_the_graph_of_its_kind_of_call(
    on_device: bool, world: fake_tensorrt.World, engine: Path, place: Place
) -> None:
    """Also of inputs on the GPU, with `resizer="cuda"`."""
    images = np.zeros((2, 128, 160, 3), np.uint8)
    for resizer, batch in (("opencv", images), ("cuda", InterfaceArray(place(images)))):
        with Predictor(engine, resizer=resizer) as predictor:
            predictor.warmup(batches=2, on_device=on_device)
            graphs, launches = len(world.cuda.executables), world.cuda.launches
            assert graphs == 2  # one in each slot
            predictor.infer(batch, on_device=on_device)
            assert (len(world.cuda.executables), world.cuda.launches) == (graphs, launches + 1)
            predictor.infer(batch, on_device=not on_device)
            assert len(world.cuda.executables) == graphs + 1


def test_close_waits_for_an_output_that_is_being_copied(
    world: fake_tensorrt.World, predictor: Predictor, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = predictor.prepare(predictor.load([picture]))
    expected = predictor.infer(batch)["boxes"]
    output = predictor.infer(batch, on_device=True)["boxes"]
    begun, closed = threading.Event(), threading.Event()
    real = FakeCuda.cudaMemcpy

    def slowly(cuda: FakeCuda, *copy: int) -> tuple[Any, ...]:
        begun.set()
        closed.wait(0.3)
        return real(cuda, *copy)

    monkeypatch.setattr(FakeCuda, "cudaMemcpy", slowly)
    with ThreadPoolExecutor(1) as threads:
        copied = threads.submit(np.asarray, output)
        assert begun.wait(60)
        predictor.close()
        closed.set()
        assert np.array_equal(copied.result(60), expected)
    assert world.cuda.alive == 0


def test_an_output_on_the_gpu_stays_behind_in_a_forked_child(
    predictor: Predictor, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = predictor.infer(predictor.prepare(predictor.load([picture])), on_device=True)["boxes"]
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        with pytest.raises(DeviceError, match="opened in another process, and CUDA does not survive a fork"):
            np.asarray(output)


def test_outputs_are_valid_while_they_are_held_and_the_engine_is_open(
    world: fake_tensorrt.World, engine: Path, picture: NDArray[np.uint8]
) -> None:
    with Predictor(engine, 0.0, slots=1) as predictor:
        first = predictor.prepare(predictor.load([picture]))
        second = predictor.prepare(predictor.load([picture[::-1]]))
        held = predictor.infer(first, on_device=True)
        other = predictor.infer(second, on_device=True)
        expected = predictor.infer(first)["boxes"]
        assert np.array_equal(np.asarray(held["boxes"]), expected)
        assert not np.array_equal(np.asarray(other["boxes"]), expected)
        blocks = len(world.cuda.device)
        del other
        done: list[str] = []
        world.cuda.enqueue(1, lambda: done.append("a reader of the old outputs"))
        again = predictor.infer(second, on_device=True)  # in the block of `other`, once its readers are done
        assert done
        assert len(world.cuda.device) == blocks
        assert np.array_equal(np.asarray(held["boxes"]), expected)
    assert isinstance(again["boxes"], EngineOutput)
    for use in (lambda: np.asarray(held["boxes"]), lambda: again["boxes"].__cuda_array_interface__):
        with pytest.raises(ArtifactError, match="dynamic.engine is closed"):
            use()

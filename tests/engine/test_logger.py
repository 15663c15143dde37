"""TensorRT's one logger per process: what was said is read by whoever called, also after another engine is gone."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_tensorrt
from engine_world import make_engine
from fake_tensorrt import ILogger
from rtdetr_deploy import DeviceError, ExportError, open_runtime
from rtdetr_deploy.runtimes.trt import logger as process_logger
from rtdetr_deploy.runtimes.trt.logger import KEPT, get_logger, last_message, log_since, mark, messages_since
from rtdetr_export import build_engine

pytest_plugins = ("engine_world",)
FEED = {"images": np.zeros((1, 128, 160, 3), np.uint8)}


@pytest.fixture
def say(world: fake_tensorrt.World) -> Any:
    """Return what speaks as TensorRT does."""
    fake_tensorrt.register(get_logger(), "a test")
    return world.say


def test_the_logger_is_one_for_the_process_and_never_freed(world: fake_tensorrt.World) -> None:
    alive = weakref.ref(get_logger())
    assert get_logger() is alive()
    process_logger._make_logger.cache_clear()  # as Python clears modules when it ends
    gc.collect()
    assert alive() is not None


def test_the_second_engine_hears_its_own_errors_also_when_the_first_is_gone(
    world: fake_tensorrt.World, dynamic_onnx: Path, tmp_path: Path
) -> None:
    engine = make_engine(dynamic_onnx, tmp_path)
    first, second = open_runtime(engine), open_runtime(engine)
    world.refuse = True
    with pytest.raises(DeviceError, match="refused execution: Error Code 3: API Usage Error"):
        second.run(FEED)
    first.close()
    del first
    gc.collect()
    with pytest.raises(DeviceError, match="refused execution: Error Code 3: API Usage Error"):
        second.run(FEED)
    second.close()


def test_builds_speak_to_the_same_logger_from_their_own_thread(
    world: fake_tensorrt.World, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(small_onnx, tmp_path)
    runtime = open_runtime(engine)
    threads: list[int] = []

    def fail(*_: object) -> None:
        threads.append(threading.get_ident())
        world.say(ILogger.ERROR, "Error Code 10: could not find any implementation for node {ForeignNode[/a]}")
        world.say(ILogger.WARNING, "skipping the rest")

    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", fail)
    since = mark()
    with pytest.raises(ExportError, match=r"can't build small.onnx: Error Code 10: could not .*\[/a\]}; for diagnosis"):
        build_engine(small_onnx, tmp_path / "x.engine")
    assert "already registered" not in log_since(since)
    assert threads != [threading.get_ident()]
    assert {message.thread for message in messages_since(since)} >= set(threads)
    runtime.close()


def test_an_error_is_shown_rather_than_a_later_warning(say: Any) -> None:
    say(ILogger.ERROR, "before")
    since = mark()
    assert last_message(since) == "it gave no reason"
    say(ILogger.INFO, "chatter")
    assert last_message(since) == "it gave no reason"
    say(ILogger.WARNING, "a warning\nof two lines")
    assert last_message(since) == "a warning of two lines"
    say(ILogger.INTERNAL_ERROR, "the cause")
    say(ILogger.WARNING, "afterwards")
    assert last_message(since) == "the cause"
    for text in ("second", "second", "third", "fourth"):
        say(ILogger.ERROR, text)
    assert last_message(since) == "the cause; third; fourth"


def test_other_threads_are_heard_where_the_own_one_is_silent(say: Any) -> None:
    def say_elsewhere(text: str) -> None:
        thread = threading.Thread(target=say, args=(ILogger.ERROR, text))
        thread.start()
        thread.join()

    since = mark()
    say(ILogger.WARNING, "a warning here")
    say_elsewhere("an error of a thread of the builder")
    assert last_message(since) == "an error of a thread of the builder"
    say(ILogger.ERROR, "an error here")
    say_elsewhere("another engine's")
    assert last_message(since) == "an error here"


def test_the_whole_log_is_text_and_bounded(say: Any) -> None:
    since = mark()
    say(ILogger.INFO, "Detected 1 inputs and 3 output network tensors.\n")
    say(ILogger.VERBOSE, "Tactic: 0x1 Time: 0.1")
    say(ILogger.WARNING, "two\nlines")
    assert log_since(since) == "[INFO] Detected 1 inputs and 3 output network tensors.\n[WARNING] two\nlines\n"
    for number in range(KEPT):
        say(ILogger.INFO, str(number))
    assert len(messages_since(since)) == KEPT
    assert log_since(since).startswith("(what was said before is lost)\n[INFO] 0\n")

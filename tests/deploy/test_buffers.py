"""Memory that is used again: whose it is, and when."""

from __future__ import annotations

import threading

import numpy as np

from rtdetr_deploy.images.buffers import Buffers
from rtdetr_deploy.images.frame import Frame
from rtdetr_deploy.images.preprocess import HostPreprocessor
from rtdetr_deploy.images.preprocess_spec import PreprocessSpec


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    pool = Buffers()
    array = pool.empty((2, 3), np.float32)
    array[:] = 7
    view, address = array[1:], _address(array)
    del array
    other = pool.empty((2, 3), np.float32)
    assert _address(other) != address
    assert np.array_equal(view, np.full((1, 3), 7, np.float32))
    del view
    assert _address(pool.empty((3, 2), np.float32)) == address


def test_a_pool_keeps_no_more_than_its_limit() -> None:
    pool = Buffers(kept_bytes=100)
    held = [pool.empty((40,), np.uint8) for _ in range(4)]
    held.append(pool.empty((101,), np.uint8))
    held.clear()
    assert pool.idle_bytes == 80


def test_prepared_inputs_stay_the_caller_s() -> None:
    prepare = HostPreprocessor(PreprocessSpec.rtdetr((16, 16), "uint8"))
    frames = [Frame(np.full((20, 30, 3), level, np.uint8), rgb=True) for level in (10, 200)]
    first, second = (prepare([frame], 1) for frame in frames)
    assert first.min() == first.max() == 10
    assert second.min() == second.max() == 200


def test_threads_never_share_an_array() -> None:
    prepare = HostPreprocessor(PreprocessSpec.rtdetr((64, 64)))
    wrong: list[int] = []

    def work(level: int) -> None:
        frame = Frame(np.full((70, 80, 3), level, np.uint8), rgb=level % 2 == 0)
        expected = np.float32(level) * np.float32(1 / 255)
        for _ in range(200):
            batch = prepare([frame], 1)
            if batch.min() != expected or batch.max() != expected:
                wrong.append(level)

    threads = [threading.Thread(target=work, args=(50 * index,)) for index in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

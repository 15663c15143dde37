"""Batches of one epoch, the same for the same seed and epoch whatever the number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from rtdetr_deploy.artifacts.input_size import STRIDE
from rtdetr_train.data.augment import Augmentation
from rtdetr_train.data.coco import CocoData, Sample, collate
from rtdetr_train.matcher import Targets
from rtdetr_train.options import TrainOptions

Batch = tuple[Tensor, Targets]


class EpochBatches:
    """Batch `b` of epoch `epoch`: images drawn without repetition, augmented, resized to that batch's size."""

    def __init__(self, data: CocoData, options: TrainOptions, epoch: int) -> None:
        self._data = data
        self._options = options
        self._epoch = epoch
        self._augment = make_augmentation(options, epoch)
        rng = np.random.default_rng((options.seed, epoch))
        order = rng.permutation(len(data))
        # An incomplete last batch is filled with the epoch's first images: batch norm needs more than one.
        missing = -len(order) % options.batch
        self._order = np.resize(order, len(order) + missing)
        limit = options.multiscale_steps or 0
        steps = rng.integers(-limit, limit + 1, len(self))
        self._sizes = steps[:, None] * STRIDE + options.size

    def __len__(self) -> int:
        return len(self._order) // self._options.batch

    def __getitem__(self, index: int) -> Batch:
        batch = self._options.batch
        rows = range(index * batch, (index + 1) * batch)
        return collate([self._sample(row) for row in rows], *self._sizes[index].tolist())

    def _sample(self, row: int) -> Sample:
        rng = np.random.default_rng((self._options.seed, self._epoch, row))
        return self._augment(self._data.load(int(self._order[row])), rng)


def make_augmentation(options: TrainOptions, epoch: int) -> Augmentation:
    """Return the augmentation of `epoch`: only flips in the last `options.no_aug_epochs`."""
    if epoch >= options.epochs - options.no_aug_epochs:
        return Augmentation(color=0.0, zoom_out=0.0, crop=0.0, any_orientation=options.any_orientation)
    return Augmentation(any_orientation=options.any_orientation, max_zoom_out=options.max_zoom_out)


def load_epoch(data: CocoData, options: TrainOptions, epoch: int) -> Iterator[Batch]:
    """Yield the batches of `epoch`, prepared ahead by `options.workers` threads (0: none, each when it is asked for).

    Threads, because decoding and resizing release the GIL, and because processes forked beside torch's and
    OpenCV's own threads can hang.
    """
    batches = EpochBatches(data, options, epoch)
    if options.workers == 0:
        yield from (batches[index] for index in range(len(batches)))
        return
    with ThreadPoolExecutor(options.workers) as pool:
        ahead: deque[Future[Batch]] = deque()
        for index in range(len(batches)):
            ahead.append(pool.submit(batches.__getitem__, index))
            if len(ahead) > options.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

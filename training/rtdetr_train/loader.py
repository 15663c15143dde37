"""Batches of one epoch, the same for the same seed and epoch whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rtdetr_train.augment import Augmentation
from rtdetr_train.data import CocoData, Sample, collate
from rtdetr_train.matcher import Target
from rtdetr_train.options import STRIDE, TrainOptions

Batch = tuple[Tensor, list[Target]]


class EpochBatches(Dataset[Batch]):
    """Batch `b` of epoch `epoch`: images drawn without repetition, augmented, resized to that batch's size."""

    def __init__(self, data: CocoData, options: TrainOptions, epoch: int) -> None:
        self._data = data
        self._options = options
        self._epoch = epoch
        self._augment = Augmentation(any_orientation=options.any_orientation, largest_expansion=options.expand)
        rng = np.random.default_rng((options.seed, epoch))
        order = rng.permutation(len(data))
        # An incomplete last batch is filled with the epoch's first images: batch norm needs more than one.
        missing = -len(order) % options.batch
        self._order = np.resize(order, len(order) + missing)
        reach = options.scales * STRIDE
        self._sizes = rng.integers(-options.scales, options.scales + 1, len(self)) * STRIDE + options.size
        assert reach < options.size

    def __len__(self) -> int:
        return len(self._order) // self._options.batch

    def __getitem__(self, index: int) -> Batch:
        batch, size = self._options.batch, int(self._sizes[index])
        rows = range(index * batch, (index + 1) * batch)
        return collate([self._sample(row) for row in rows], size, size)

    def _sample(self, row: int) -> Sample:
        rng = np.random.default_rng((self._options.seed, self._epoch, row))
        return self._augment(self._data.load(int(self._order[row])), rng)


def load_epoch(data: CocoData, options: TrainOptions, epoch: int) -> Iterator[Batch]:
    """Yield the batches of `epoch`, prepared by `options.workers` processes."""
    batches = EpochBatches(data, options, epoch)
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        num_workers=options.workers,
        worker_init_fn=_use_one_thread,
        multiprocessing_context="fork" if options.workers and not options.device.startswith("cuda") else None,
    )
    yield from loader


def _use_one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)

"""One pass over the images of a half set: read, prepare, search, add up, on as many threads as there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from spa.em.classes import UnalignedSums
from spa.em.descent import Descent
from spa.em.expectation import Reference, Step
from spa.em.images import Preparer, by_magnification
from spa.em.inputs import Inputs
from spa.em.maximisation import Estimates, accumulate, new_sums
from spa.em.settings import Search
from spa.em.state import FloatArray, Poses, Sums
from spa.kernels.backend import one_thread, threads, use_device

Indices: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Images: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

BATCH = 64
"""Images of a batch: enough to share the work of a call, few enough that every thread gets some."""
FIRST_BATCH = 16
"""Images of the first batch, which runs alone."""
QUEUED = 2
"""Batches that wait for each thread, so that reading runs ahead of computing."""


@dataclass
class Sweep:
    """Runs the expectation step over images; the same for the real iterations and for probes on a few images.

    Attributes
    ----------
    memory : bytes that the run may use: half of it for tables, an eighth for the working arrays of all threads.
    check_abort : called after each batch; raises when the job shall end.
    """

    inputs: Inputs
    prepare: Preparer
    search: Search
    padding: int
    memory: int
    check_abort: Callable[[], None]
    device: int | None

    @property
    def batch_size(self) -> int:
        """Images of a batch."""
        return int(np.clip(self.memory // (4000 * len(self.prepare.pixels)), 4, BATCH))

    def batches(self, indices: Indices, first: int = 0) -> Iterator[tuple[Indices, Images]]:
        """Batches of images, each of one magnification; the next is read while one is used.

        first : images of the first batch, if it shall have fewer.
        """
        for part in by_magnification(indices, self.inputs.magnification):
            yield from self.inputs.images.batches(part, self.batch_size, first)
            first = 0

    def run(
        self,
        reference: Reference,
        step: Step,
        poses: Poses,
        sigma2: FloatArray,
        group_scale: FloatArray,
        indices: Indices,
        uniform: FloatArray,
        bar: Any,
    ) -> tuple[Sums, list[tuple[Indices, Estimates]]]:
        """Sums over `indices` and the new estimates for them; `poses` are not changed.

        Parameters
        ----------
        sigma2, group_scale : those of the half set.
        uniform : float64 (n_particles,), see `accumulate`.
        bar : progress bar or None.

        Notes
        -----
        Every thread has a lane: its own sums, and each n-th batch in turn. So the result does not depend on which
        thread is faster, only, within rounding, on their number.
        """
        n_lanes = self._lanes(step, reference.transform.ndim - 1)
        memory = self.memory // 8 // n_lanes
        rotations = poses.rotations[indices]
        shape = self.prepare.stretch, self.prepare.norm_orders(step.score_kmax)
        descent = Descent(reference, step, self.search, memory, self.memory // 2, rotations, *shape)
        sums = [self._new_sums(reference, step) for _ in range(n_lanes)]

        def work(lane: int, part: Indices, images: Images) -> tuple[Indices, Estimates, int]:
            batch = self.prepare.batch(images, part, poses, sigma2, group_scale, step.score_kmax)
            scores = descent.run(batch, poses.rotations[part])
            optics, groups = self.inputs.optics[part], self.inputs.groups[part]
            made = accumulate(
                sums[lane], batch, scores, reference, step, self.search, optics, groups, uniform[part], memory
            )
            return part, made, scores.scored

        estimates = []
        for part, made, scored in self._in_order(work, self.batches(indices, FIRST_BATCH), n_lanes):
            estimates.append((part, made))
            sums[0].candidates += scored
            if bar is not None:
                bar.update(len(part))
            self.check_abort()
        return sum(sums[1:], sums[0]), estimates

    def _in_order(self, work: Any, batches: Iterator[tuple[Indices, Images]], n_lanes: int) -> Iterator[Any]:
        """Results of the batches in their order: the first, which makes the tables, alone on all threads."""
        first = next(batches, None)
        if first is None:
            return
        yield work(0, *first)
        if n_lanes == 1:
            for part, images in batches:
                yield work(0, part, images)
            return
        with ExitStack() as stack:
            lanes = [ThreadPoolExecutor(1, initializer=self._enter) for _ in range(n_lanes)]
            for lane in lanes:
                stack.callback(lane.shutdown, wait=True, cancel_futures=True)
            pending: deque[Future[Any]] = deque()
            for number, (part, images) in enumerate(batches, start=1):
                turn = number % n_lanes
                pending.append(lanes[turn].submit(work, turn, part, images))
                if len(pending) > QUEUED * n_lanes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _enter(self) -> None:
        """What a lane's thread does first."""
        one_thread()
        use_device(self.device)

    def _lanes(self, step: Step, ndim: int) -> int:
        """Threads that can each have accumulators of their own within a quarter of the memory; one on a GPU."""
        if self.device is not None:
            return 1
        side = 2 * self.padding * (step.kmax + 2) + 3
        accumulator = 12 * step.n_classes * side ** (ndim - 1) * (side // 2 + 1)
        return int(np.clip(self.memory // 4 // accumulator, 1, threads()))

    def _new_sums(self, reference: Reference, step: Step) -> Sums:
        return new_sums(
            step.n_classes,
            self.inputs.n_optics,
            self.inputs.n_groups,
            self.inputs.box_size,
            self.padding,
            step.kmax,
            self.prepare.kx,
            reference.transform.ndim - 1,
        )


def unaligned_averages(
    sweep: Sweep,
    indices: Indices,
    poses: Poses,
    sigma2: FloatArray,
    classes: np.ndarray[tuple[int], np.dtype[np.int32]],
    kmax: int,
) -> FloatArray:
    """Averages (n_classes, box, box) of images as they come; `classes` is the one of each particle."""
    scale = np.ones(sweep.inputs.n_groups)
    sums = UnalignedSums(int(classes.max()) + 1, sweep.padding, kmax)
    for part, images in sweep.batches(indices):
        sums.add(sweep.prepare.batch(images, part, poses, sigma2, scale, kmax), classes[part])
        sweep.check_abort()
    return sums.averages(sweep.inputs.box_size)

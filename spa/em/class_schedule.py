"""Classification's plan: a fixed number of iterations at one sampling, as far as the classes resolve."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from spa import healpix
from spa.em.expectation import Parts, Step
from spa.em.sampling import Level, make_flat_level, make_own_poses
from spa.em.schedule import FINEST_ORDER, RESOLUTION_MARGIN, Schedule
from spa.em.settings import RefinementOptions, Search, SearchOptions
from spa.em.state import Poses, State
from spa.euler import random_rotations

FLAT_SUBSET, MAP_SUBSET = (15, 60), (100, 400)
"""Particles per class in the first and in the last small part of a gradient run, for images and for maps."""
SMALLEST_SUBSET = 200
"""Particles that such a part has at least."""
FADING = 0.6
"""Exponent of the step size of a gradient run, between one half and one."""
SCORE_MARGIN = 3
"""Shells beyond the resolution that images are compared on, so that it can grow."""
SHELLS_PER_ITERATION = 1
"""Shells by which an iteration may look further than the one before: classes form where few shells have much signal;
with all shells at once an image holds on to the class that has its noise."""
GLOBAL_ORDER = 4
"""Finest HEALPix order of searches everywhere while there is one map."""
CONSENSUS_SHELLS = 4
"""Shells by which an iteration with one map may look further than the one before."""
CONSENSUS = 0.32
"""Share of the iterations that align particles to one map before they are parted into classes."""
SEARCHING = 0.16
"""Share of the iterations, the last ones, that search poses in all classes."""
REFILLING = 0.8
"""Share of the iterations during which empty classes are filled from large ones; the rest lets all settle."""
HONEST = 0.8
"""Share of the iterations in which 2D classes come to a prior of their signal alone. At first it holds their noise,
too: classes that are still blurred, of few particles, would not become sharp without."""
FIRST_FREQUENCY = 0.07
"""Digital frequency (cycles per pixel) to which 2D classification first aligns: that of RELION's first references."""


class ClassSchedule(Schedule):
    """What all classification shares.

    Parameters
    ----------
    n_iterations : how many there are in all.
    highest_resolution : Å beyond which images are never compared with references (<= 0: no such limit).
    n_particles : their number.
    gradient : iterations but the last see parts of the particles that grow, and sums fade from one to the next.
    """

    n_iterations: int
    highest_resolution: float
    n_particles: int
    gradient: bool
    subset_per_class: tuple[int, int]

    def advance(self, state: State, median_change: float) -> None:
        """Follow the best class's resolution; the number of iterations is given."""
        state.score_kmax = min(self._next_score_kmax(state), self._reached(state))
        state.kmax = min(self.largest_kmax, max(self.first_kmax(), state.resolution_shell + RESOLUTION_MARGIN))
        self.progress.finished = state.iteration >= self.n_iterations

    def _reached(self, state: State) -> int:
        """The shell up to which the references are good enough to compare images with."""
        limit = self.shell_of(self.highest_resolution) if self.highest_resolution > 0 else self.largest_kmax
        return min(limit, max(self.first_shell(), state.resolution_shell + SCORE_MARGIN))

    def _next_score_kmax(self, state: State) -> int:
        """The shell up to which the next iteration may look."""
        return state.score_kmax + SHELLS_PER_ITERATION

    def _subset(self, state: State) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]] | None, float]:
        """The particles of the next iteration (None: all) and the share of the earlier sums that stays.

        Notes
        -----
        Stochastic expectation-maximisation (Cappé & Moulines 2009, J R Stat Soc B 71:593): the sums of an iteration are
        added to those before, of which 1 - t^-FADING stays.
        """
        number = state.iteration + 1
        sizes = [self._subset_size(t, state.n_classes) for t in range(1, number + 1)]
        if not self.gradient or number >= self.n_iterations or sizes[-1] >= self.n_particles:
            return None, 0.0
        position = np.arange(sum(sizes[:-1]), sum(sizes))
        lap, seed = position // self.n_particles, self.options.random_seed
        drawn = [
            np.random.default_rng((seed, 7, n)).permutation(self.n_particles)[position[lap == n] % self.n_particles]
            for n in np.unique(lap)
        ]
        # no more may stay than all particles are worth
        momentum = min(1 - number**-FADING, 1 - sizes[-1] / self.n_particles)
        return np.unique(np.concatenate(drawn)).astype(np.int64), momentum

    def _subset_size(self, number: int, n_classes: int) -> int:
        """Particles of iteration `number` of a gradient run: a geometric series."""
        first, last = (per_class * n_classes for per_class in self.subset_per_class)
        part = min(1.0, (number - 1) / max(1, self.n_iterations - 2))
        return max(SMALLEST_SUBSET, round(float(first * (last / first) ** part)))


class FlatSchedule(ClassSchedule):
    """2D references: in-plane angles and shifts.

    Parameters
    ----------
    psi_step : degrees, before oversampling.
    inactivity : classes whose share is below this part of an equal one are filled anew.
    """

    def __init__(
        self,
        options: SearchOptions,
        search: Search,
        box: int,
        pixel_size: float,
        n_iterations: int,
        psi_step: float,
        highest_resolution: float = -1.0,
        inactivity: float = 0.0,
        n_particles: int = 0,
        gradient: bool = False,
    ) -> None:
        super().__init__(options, search, box, pixel_size, "C1", pixel_size / FIRST_FREQUENCY, 0)
        self.n_iterations, self.highest_resolution = n_iterations, highest_resolution
        self.inactivity, self.n_particles, self.gradient = inactivity, n_particles, gradient
        self.subset_per_class = FLAT_SUBSET
        self.n_psi = 2 * math.ceil(180 / psi_step)

    @property
    def coarse_step(self) -> float:
        """Angular step (degrees) before oversampling."""
        return 360 / self.n_psi

    def step(self, state: State, fit_scale: bool) -> Step:
        """The plan of the next iteration, its angles turned by a random part of a step."""
        kmax, n_psi = state.score_kmax, self.n_psi
        origin = (float(self._generator(state).uniform()) - 0.5) * 2 * math.pi / n_psi
        offset_step, count = self._first_offsets(self._level_kmax(360 / n_psi, kmax))
        levels: list[Level] = []
        for depth in range(self.options.oversampling + 1):
            last = depth == self.options.oversampling
            level_kmax = kmax if last else self._level_kmax(360 / n_psi, kmax)
            levels.append(make_flat_level(n_psi, offset_step, count, level_kmax, origin))
            n_psi *= 2
            if depth < self.search.refined_offsets:
                offset_step, count = offset_step / 2, count * 2
        first = levels[0]
        subset, momentum = self._subset(state)
        return Step(
            levels=tuple(levels),
            local=False,
            dense_orientations=np.arange(state.n_classes * first.n_psi, dtype=np.int64),
            dense_shifts=self._disc(first),
            fit_scale=fit_scale,
            offset_sigma=state.offset_sigma,
            # sums that fade into each other are of one size
            kmax=self.largest_kmax if self.gradient else state.kmax,
            score_kmax=kmax,
            parts=self._refilled(state),
            n_classes=state.n_classes,
            subset=subset,
            momentum=momentum,
            noise_share=min(1.0, (state.iteration + 1) / (HONEST * self.n_iterations)),
        )

    def _refilled(self, state: State) -> Parts | None:
        """Halves, drawn by lot, of the largest classes for those that have all but lost their particles.

        Notes
        -----
        Expectation-maximisation lets large classes grow, whose averages are less noisy, at the cost of small ones. The
        halves of a class that holds more than one view grow apart.
        """
        if self.inactivity <= 0 or not 1 <= state.iteration < REFILLING * self.n_iterations:
            return None
        share, equal = state.pdf_class[0], 1 / state.n_classes
        empty = np.nonzero(share < self.inactivity * equal)[0]
        large = np.argsort(-share, kind="stable")[: len(empty)]
        large = large[share[large] > equal]
        classes = np.repeat(np.arange(state.n_classes, dtype=np.int32)[:, None], 2, axis=1)
        classes[large, 1] = empty[: len(large)]
        part = np.random.default_rng((self.options.random_seed, state.iteration, 5)).integers(0, 2, self.n_particles)
        return Parts(classes, part.astype(np.int32))


class MapSchedule(ClassSchedule):
    """Maps as references: everywhere, around the last poses, or at the last poses alone.

    Parameters
    ----------
    n_classes : how many there shall be; where one reference is given, the first iterations have it alone.
    sigma_ang : degrees; above zero, searches are around the last poses, by this Gaussian as a prior.
    skip_align : particles are only compared at the poses they have.
    seeds : int32 (n,), the class to which each particle counts in the iteration that parts them; None where several
        references are given.

    Attributes
    ----------
    poses : those of the particles, as the engine keeps them.

    Notes
    -----
    From one reference: the particles are aligned to one map first (`CONSENSUS` of the iterations, none where they
    have poses); then each is added to the sums of a class drawn by lot; the classes form at these poses, where an
    iteration is cheap and a class cannot win a particle by a better pose; in the last iterations (`SEARCHING`) poses
    are searched in all classes again.
    """

    def __init__(
        self,
        options: RefinementOptions,
        search: Search,
        box: int,
        pixel_size: float,
        n_iterations: int,
        highest_resolution: float,
        n_classes: int,
        sigma_ang: float = -1.0,
        skip_align: bool = False,
        seeds: np.ndarray[tuple[int], np.dtype[np.int32]] | None = None,
        n_particles: int = 0,
        gradient: bool = False,
    ) -> None:
        order = options.healpix_order + options.oversampling
        super().__init__(options, search, box, pixel_size, options.sym, options.ini_high, order)
        self.n_iterations, self.highest_resolution = n_iterations, highest_resolution
        self.n_particles, self.gradient, self.subset_per_class = n_particles, gradient, MAP_SUBSET
        self.coarse_order, self.sigma_ang, self.skip_align, self.seeds = (
            options.healpix_order,
            sigma_ang,
            skip_align,
            seeds,
        )
        self.n_classes = n_classes
        self.poses: Poses | None = None
        self.staged = seeds is not None and not gradient
        self.n_consensus = round(CONSENSUS * n_iterations) if self.staged and not self.local else 0
        self.n_searching = n_iterations
        if skip_align:
            self.n_searching = 0
        elif self.staged:
            self.n_searching = max(1, round(SEARCHING * n_iterations))

    @property
    def local(self) -> bool:
        """Whether searches are around the last poses only."""
        return self.sigma_ang > 0 or self.skip_align

    def step(self, state: State, fit_scale: bool) -> Step:
        """The plan of the next iteration."""
        perturbation = random_rotations(1, self._generator(state))[0]
        at_own = self.n_consensus <= state.iteration < self.n_iterations - self.n_searching
        near = self.local or (self.staged and self._near(state))
        if at_own:
            if self.poses is None:
                raise ValueError("expected the poses of the particles")
            levels = [make_own_poses(self.poses.rotations, state.score_kmax)]
        elif near:
            levels = self._local_levels(state, state.score_kmax, perturbation)
        else:
            base = min(self.search.dense_order, self.coarse_order)
            levels = self._levels(state.score_kmax, perturbation, base, self.progress.order)
        parts = None
        if self.seeds is not None and state.iteration == self.n_consensus:
            parts = Parts(np.arange(self.n_classes, dtype=np.int32)[None], self.seeds)
        subset, momentum = self._subset(state)
        kmax = self.largest_kmax if self.gradient else state.kmax
        planned = self._planned(state, levels, fit_scale, kmax, at_own, parts)
        n_classes = state.n_classes if parts is None else self.n_classes
        settling = state.iteration >= self.n_iterations - round(SEARCHING * self.n_iterations)
        return replace(
            planned,
            local=near or at_own,
            angle_sigma=0.0 if at_own else max(self.sigma_ang, 0.0),
            n_classes=n_classes,
            subset=subset,
            momentum=momentum,
            bootstrap=not settling,
        )

    def advance(self, state: State, median_change: float) -> None:
        """As for every classification; while there is one map its sampling grows as fine as its accuracy asks for."""
        super().advance(state, median_change)
        p = self.progress
        if state.iteration < self.n_consensus:
            p.best_shell = state.score_kmax
            if p.order < FINEST_ORDER - 1 and healpix.angular_step(p.order) > state.accuracy_rotations:
                p.order += 1

    def _next_score_kmax(self, state: State) -> int:
        """A few shells further while there is one map; then from what the particles can tell apart to where it came."""
        if not self.staged:
            return super()._next_score_kmax(state)
        if state.iteration < self.n_consensus:
            return state.score_kmax + CONSENSUS_SHELLS
        return self.progress.best_shell or self._reached(state)

    def _near(self, state: State) -> bool:
        """Whether the next search is around the last poses: where the sampling is fine, but for one last look."""
        if state.iteration == self.n_iterations - self.n_searching:
            return False
        return self.progress.order > GLOBAL_ORDER and state.iteration > 0

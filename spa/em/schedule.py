"""When to search finer, to higher resolution, locally, and when to stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spa import healpix
from spa.em.expectation import Parts, Step
from spa.em.sampling import Level, make_level
from spa.em.settings import RefinementOptions, Search, SearchOptions
from spa.em.state import State
from spa.em.validation import LEAK_SHELLS
from spa.euler import random_rotations
from spa.symmetry import asymmetric_unit, operators

RESOLUTION_MARGIN = 10
"""Shells beyond the present resolution that an iteration uses: RELION's incr_size."""
STRONG_MARGIN = 8
"""Further shells where the halves still agree (FSC > 0.2) at the last one used."""
ASYMMETRIC_UNIT_MARGIN = 0.75
"""Directions this many angular steps outside the asymmetric unit are searched too: a HEALPix cell's radius."""
FINEST_ORDER = 6
"""Finest HEALPix order of a descent (0.9°); with mean poses a finer one brought nothing."""
ITERATIONS_PER_ORDER = 2
"""Iterations at one angular sampling before the next finer one, even while the resolution still grows."""
MOVING = 2.0
"""Poses whose median change exceeds this many angular steps (or accuracies) have not converged."""
SETTLED = 0.8
"""Poses have settled when their median change is no longer below this share of the last iteration's."""
RESCUE_SETTLED = 0.05
"""Share of the poses that a global search may move, before convergence, without another iteration to follow."""
STILL = 0.5
"""Poses that move by less than this share of their accuracy in the median have settled, too."""
IMPROVING = 0.97
"""While the expected angular accuracy still falls below this share of the last iteration's, nothing has converged:
where signal is weak, poses hardly move from one iteration to the next, and the map goes on to improve."""
MAX_ITERATIONS = 30


@dataclass
class Progress:
    """Where a refinement stands; plain numbers, so that it can be written and read back.

    Attributes
    ----------
    order : HEALPix order of the last level (oversampling included).
    at_order : iterations done at this order.
    best_shell : best resolution so far, shells.
    last_change : median angle (degrees) by which poses moved in the last iteration at this order.
    last_accuracy : expected angular accuracy (degrees) after the last iteration.
    rescue : before the next iteration the poses are searched globally once more, although searches have become local.
    rescued : that has been done.
    final : the next iteration is the last one, to Nyquist, joining the halves.
    finished : the last one is done.
    exhausted : it came after MAX_ITERATIONS, before convergence.
    """

    order: int
    at_order: int = 0
    best_shell: int = 0
    last_change: float = 180.0
    last_accuracy: float = 999.0
    rescue: bool = False
    rescued: bool = False
    final: bool = False
    finished: bool = False
    exhausted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Schedule(ABC):
    """Plans each iteration from the state and the progress so far.

    Parameters
    ----------
    symmetry : point group.
    first_resolution : Å, to which the first iteration aligns (<= 0: a third of the box).
    order : HEALPix order of the first iteration's last level.
    """

    def __init__(
        self,
        options: SearchOptions,
        search: Search,
        box: int,
        pixel_size: float,
        symmetry: str,
        first_resolution: float,
        order: int,
    ) -> None:
        self.options = options
        self.search = search
        self.box = box
        self.pixel_size = pixel_size
        self.symmetry = symmetry
        self.operators = operators(symmetry)
        self.radius = particle_radius(options, box, pixel_size)
        self.first_resolution = first_resolution
        self.progress = Progress(order=order)

    @property
    def largest_kmax(self) -> int:
        """The last Fourier radius below Nyquist."""
        return self.box // 2 - 1

    @property
    def local(self) -> bool:
        """Whether searches are around the last poses only."""
        return False

    @property
    def coarse_step(self) -> float:
        """Angular step (degrees) before oversampling."""
        return healpix.angular_step(self.progress.order - self.options.oversampling)

    def shell_of(self, resolution: float) -> int:
        """The shell of a resolution (Å), 2 to the last below Nyquist."""
        return min(self.largest_kmax, max(2, round(self.box * self.pixel_size / resolution)))

    def first_shell(self) -> int:
        """Last shell on which the first iteration aligns."""
        if self.first_resolution <= 0:
            return min(self.largest_kmax, self.box // 3)
        return self.shell_of(self.first_resolution)

    def first_kmax(self) -> int:
        """Fourier radius of the first iteration's maps."""
        return min(self.largest_kmax, self.first_shell() + RESOLUTION_MARGIN)

    @abstractmethod
    def step(self, state: State, fit_scale: bool) -> Step:
        """The plan of the next iteration; its grids are turned by a random rotation of their own."""

    @abstractmethod
    def advance(self, state: State, median_change: float) -> None:
        """Decide what comes next, after an iteration.

        Parameters
        ----------
        state : its resolution and accuracies are those of the iteration just done.
        median_change : median angle (degrees) by which poses moved in it; 180 in the first one.
        """

    @property
    def reach(self) -> float:
        """Angle (degrees) beyond which a local search does not find a pose."""
        return 2 * healpix.angular_step(self.progress.order - 1)

    def rescued(self, share: float) -> None:
        """After a global search that moved this share of the poses beyond the reach of a local one."""
        self.progress.rescue, self.progress.rescued = False, True
        self.progress.final = self.progress.final or share < RESCUE_SETTLED

    def _generator(self, state: State) -> np.random.Generator:
        """The random numbers of the next iteration's grids."""
        return np.random.default_rng((self.options.random_seed, state.iteration + 1, 1))

    def _planned(
        self,
        state: State,
        levels: list[Level],
        fit_scale: bool,
        kmax: int,
        own_poses: bool = False,
        parts: Parts | None = None,
    ) -> Step:
        """A search through levels, from everywhere in the asymmetric unit or from the last poses."""
        first = levels[0]
        margin = ASYMMETRIC_UNIT_MARGIN * first.angular_step
        inside = np.nonzero(asymmetric_unit(first.frames[:, 2], self.operators, margin))[0]
        psi = np.arange(first.n_psi, dtype=np.int64)
        one_class = (inside[:, None] * first.n_psi + psi).ravel()
        n_references = state.n_classes if parts is None else len(parts.classes)
        classes = np.arange(n_references, dtype=np.int64)[:, None] * first.n_directions * first.n_psi
        return Step(
            levels=tuple(levels),
            local=self.local,
            dense_orientations=(classes + one_class).ravel(),
            dense_shifts=self._disc(first),
            fit_scale=fit_scale,
            offset_sigma=state.offset_sigma,
            kmax=kmax,
            score_kmax=state.score_kmax,
            poses_only=self.progress.rescue,
            known=state.iteration > 0,
            own_poses=own_poses,
            parts=parts,
            n_classes=state.n_classes,
        )

    def _disc(self, level: Level) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The shifts of a level within `--offset_range`."""
        x, y = level.offsets().T
        inside = x**2 + y**2 <= (self.options.offset_range + 0.25 * level.offset_step) ** 2
        return np.nonzero(inside)[0].astype(np.int32)

    def _first_offsets(self, dense_kmax: int) -> tuple[float, int]:
        """Step (pixels) and number along an axis of the shifts of a dense level that looks as far as `dense_kmax`."""
        step = min(self.options.offset_step, self.search.offset_phase * self.box / dense_kmax)
        return step, 2 * int(np.ceil(self.options.offset_range / step - 1e-6)) + 1

    def _level_kmax(self, angular_step: float, kmax: int) -> int:
        """Fourier radius beyond which an angular step (degrees) is too coarse at the particle's edge."""
        resolved = self.search.resolved_kmax(angular_step, self.radius, self.box)
        return min(kmax, max(4, int(np.ceil(resolved))))

    def _levels(self, kmax: int, perturbation: np.ndarray[Any, Any], base: int, last: int) -> list[Level]:
        """Levels of a global search from order `base`, the dense one, to order `last`."""
        dense_kmax = self._level_kmax(healpix.angular_step(base), kmax)
        step, count = self._first_offsets(dense_kmax)
        levels = []
        for order in range(base, last + 1):
            level_kmax = kmax if order == last else self._level_kmax(healpix.angular_step(order), kmax)
            levels.append(make_level(order, step, count, level_kmax, perturbation, base))
            if order - base < self.search.refined_offsets:
                step, count = step / 2, count * 2
        return levels

    def _local_levels(self, state: State, kmax: int, perturbation: np.ndarray[Any, Any]) -> list[Level]:
        """Levels of a local search: the parents of the last order, then the last order."""
        last = self.progress.order
        coarse, _ = self._first_offsets(self._level_kmax(healpix.angular_step(self.search.dense_order), kmax))
        step = float(np.clip(state.accuracy_offsets / 2, coarse / 8, coarse / 4))
        count = 2 * self.search.local_offset_radius + 1
        parent_kmax = self._level_kmax(healpix.angular_step(last - 1), kmax)
        return [
            make_level(last - 1, step, count, parent_kmax, perturbation, last - 1),
            make_level(last, step, count, kmax, perturbation, last - 1),
        ]


class RefinementSchedule(Schedule):
    """Finer and to higher resolution as the halves agree, locally when fine enough, until nothing changes.

    Parameters
    ----------
    local_order : HEALPix order (before oversampling) from which searches are local.
    """

    def __init__(
        self, options: RefinementOptions, search: Search, box: int, pixel_size: float, local_order: int
    ) -> None:
        self.coarse_order, self.first_order = options.healpix_order, options.healpix_order + options.oversampling
        super().__init__(options, search, box, pixel_size, options.sym, options.ini_high, self.first_order)
        self.local_order = local_order

    @property
    def local(self) -> bool:
        """Whether searches are around the last poses only."""
        return self._fine_enough(self.progress.order) and not self.progress.rescue

    def _fine_enough(self, order: int) -> bool:
        """Whether a sampling is fine enough for local searches."""
        return order - self.options.oversampling >= self.local_order

    def step(self, state: State, fit_scale: bool) -> Step:
        """The plan of the next iteration."""
        perturbation = random_rotations(1, self._generator(state))[0]
        if self.local:
            levels = self._local_levels(state, state.score_kmax, perturbation)
        else:
            # a rescue stops where local searches start
            last = self.progress.order - self.progress.rescue
            base = min(self.search.dense_order, self.coarse_order, last - 1)
            levels = self._levels(state.score_kmax, perturbation, base, last)
        return self._planned(state, levels, fit_scale, self.largest_kmax if self.progress.final else state.kmax)

    def advance(self, state: State, median_change: float) -> None:
        """Decide what comes next, after an iteration."""
        p = self.progress
        if p.final:
            p.finished = True
            return
        grew = state.resolution_shell > p.best_shell
        p.best_shell = max(p.best_shell, state.resolution_shell)
        p.at_order += 1
        step = max(state.accuracy_rotations, healpix.angular_step(p.order))
        calm = median_change > SETTLED * p.last_change or median_change < STILL * state.accuracy_rotations
        improving = state.accuracy_rotations < IMPROVING * p.last_accuracy
        settled = calm and not improving and median_change < MOVING * step and p.at_order >= ITERATIONS_PER_ORDER
        p.last_change, p.last_accuracy = median_change, state.accuracy_rotations
        wanted = self._wanted_order(state.accuracy_rotations)
        if p.order < wanted and (state.iteration == 1 or not grew or p.at_order >= ITERATIONS_PER_ORDER):
            p.order, p.at_order, p.last_change = p.order + 1, 0, 180.0
        elif p.order >= wanted and not grew and settled:
            # local searches keep a particle where the last global one has left it, right or wrong
            p.rescue = self.local and not p.rescued and not self._fine_enough(self.first_order)
            p.final = not p.rescue
        if state.iteration >= MAX_ITERATIONS and not p.final:
            p.final, p.rescue, p.exhausted = True, False, True
        strong = state.fsc[min(state.kmax, len(state.fsc) - 1)] > 0.2
        margin = RESOLUTION_MARGIN + (STRONG_MARGIN if strong else 0)
        state.score_kmax = min(self.largest_kmax, max(self.first_shell(), self._alignable(state)))
        state.kmax = min(self.largest_kmax, max(self.first_kmax(), state.resolution_shell + margin))

    def _alignable(self, state: State) -> int:
        """The next iteration's last shell of alignment: the resolution, if more than leakage from the present one."""
        if state.resolution_shell > state.score_kmax + LEAK_SHELLS or state.resolution_shell < state.score_kmax:
            return state.resolution_shell
        if state.resolution_shell == self.largest_kmax:
            return self.largest_kmax
        return state.score_kmax

    def _wanted_order(self, accuracy: float) -> int:
        """The coarsest order whose step is within the angular accuracy, at least the one asked for."""
        order = self.first_order
        while order < FINEST_ORDER and healpix.angular_step(order) > accuracy:
            order += 1
        return order


def particle_radius(options: SearchOptions, box: int, pixel_size: float) -> float:
    """Radius of the particle's circle in pixels, from `--particle_diameter` or 90 % of the box."""
    diameter = options.particle_diameter
    return 0.45 * box if diameter <= 0 else min(diameter / pixel_size / 2, box / 2 - 1)

"""Classes held against particles that are not in them: maps made without the images they are compared with.

An image is drawn to the map that has its own noise, and where a class has few particles for each value of its map that
outweighs what tells classes apart. So the particles fall into parts, and each part is compared with the classes that
the others give.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from spa.em.classes import reconstruct_classes
from spa.em.expectation import Step
from spa.em.maximisation import solve_class
from spa.em.state import FloatArray, State, Sums
from spa.em.sweep import Indices
from spa.errors import InputError
from spa.fourier import forward, inverse, low_pass
from spa.grids import rfft_shells
from spa.mask import automatic_threshold, largest_pieces, soft_mask
from spa.noise import shell_average
from spa.reconstruct import symmetrise

PARTICLES_PER_VALUE = 4
"""Particles of a class for each independent value of its map where classes begin to form: with fewer, the noise of the
maps hides what tells classes apart."""
ENVELOPE_RESOLUTION, ENVELOPE_MARGIN = 15.0, (8.0, 12.0)
"""Å: to which a map is low-passed to find where the particle is; by how much that is extended, and its soft edge."""


@dataclass(frozen=True)
class Grid:
    """What maps are made with: the arguments of `reconstruct_classes` after the sums."""

    operators: FloatArray
    box: int
    padding: int
    kmax: int
    tau2_fudge: float
    mask: FloatArray
    sphere: FloatArray

    @property
    def arguments(self) -> tuple[FloatArray, int, int, int, float, FloatArray, FloatArray]:
        """In their order."""
        return self.operators, self.box, self.padding, self.kmax, self.tau2_fudge, self.mask, self.sphere


@dataclass
class Folds:
    """Parts of the particles and the maps that each is compared with.

    Attributes
    ----------
    of_particle : (n_particles,) the part of each.
    number : how many there are; with one all is as without.
    focus : float32 (box, box, box), outside which all classes have the map of all particles; None everywhere, until
        `update` finds the particle.
    find_focus : find it where it is not given.
    maps : float32 (number, n_classes, box, box, box), or None while there are none.
    penalty : (n_classes, n_shells), see `noise_penalty`.
    """

    of_particle: Indices
    number: int = 1
    focus: FloatArray | None = None
    find_focus: bool = False
    maps: FloatArray | None = None
    penalty: FloatArray = field(default_factory=lambda: np.zeros((1, 1)))

    def parts(self, state: State, step: Step, indices: Indices) -> list[tuple[Indices, State]]:
        """The parts of some particles, and the state with the maps that each is compared with."""
        if self.number == 1 or step.n_classes == 1 or step.subset is not None:
            return [(indices, state)]
        parts = [indices[self.of_particle[indices] == f] for f in range(self.number)]
        if self.maps is None or step.parts is not None:
            return [(part, state) for part in parts]
        penalty = self.penalty[:, 1 : step.score_kmax + 1].sum(1)
        shares = state.pdf_class * np.exp(penalty - penalty.max())
        return [
            (part, replace(state, maps=own[None], pdf_class=shares / shares.sum()))
            for part, own in zip(parts, self.maps, strict=True)
        ]

    def update(self, sums: list[Sums], regularised: FloatArray, grid: Grid, pixel_size: float, bootstrap: bool) -> None:
        """New maps from the sums of all parts.

        Parameters
        ----------
        regularised : (n_classes, box, box, box), the maps of all particles.
        bootstrap : differences in low shells are not held against their noise, so that they can grow.
        """
        self.maps = None
        if len(sums) == 1 or len(regularised) == 1:
            return
        total = sum(sums[1:], sums[0])
        share, n = total.class_mass / total.class_mass.sum(), float(total.images.sum())
        if self.find_focus and self.focus is None:
            found = envelope(np.tensordot(share, regularised, 1), pixel_size)
            self.focus = grid.sphere if found is None else found * grid.sphere
        maps = []
        for own in sums:
            others = total + own.decayed(-1)
            maps.append(self.focused(contrasted(others, grid) * grid.mask, others))
        where = grid.mask if self.focus is None else self.focus
        first = separable_shell(n / len(share), len(grid.operators), where) if bootstrap else 0
        self.maps = evident(np.stack(maps), share, first)
        self.penalty = noise_penalty(self.maps, share, total.signal_power.sum(0) / n)

    def masked(self, maps: FloatArray, mask: FloatArray, sums: list[Sums]) -> FloatArray:
        """References float32 (n_halves, n_classes, ...) from maps of all particles."""
        if self.focus is None:
            return np.asarray(maps * mask, np.float32)
        return np.stack([self.focused(m * mask, of) for m, of in zip(maps, sums, strict=True)]).astype(np.float32)

    def focused(self, maps: FloatArray, sums: Sums) -> FloatArray:
        """Maps (n_classes, ...) that differ inside the focus alone and are their mean, by share, outside.

        Those of classes without particles stay zero.
        """
        if self.focus is None:
            return maps
        mean = np.tensordot(sums.class_mass / sums.class_mass.sum(), maps, 1)
        used = (sums.class_mass > 0)[:, None, None, None]
        return np.asarray(np.where(used, mean + self.focus * (maps - mean), 0))


def make_folds(
    seed: int, images: Indices, number: int, focus: FloatArray | None = None, find_focus: bool = False
) -> Folds:
    """Parts of about equal size, drawn by lot; `images` (n_particles,) tells which particles are of one image.

    An image that stands in several rows, as after `spa expand`, comes into one part with all of them.
    """
    order = np.random.default_rng((seed, 6)).permutation(int(images.max(initial=-1)) + 1)
    return Folds((order % number)[images].astype(np.int64), number, focus, find_focus)


def contrasted(sums: Sums, grid: Grid) -> FloatArray:
    """Maps of all classes, (n_classes, box, box, box): the regularised map of all particles and how each differs.

    Notes
    -----
    A prior on each map would damp what all share, and most where a class is small, which then fits its images worst.
    The differences are not regularised here (see `evident`).
    """
    total = sums.class_mass.sum()[None]
    whole = replace(sums, data=sums.data.sum(0)[None], weight=sums.weight.sum(0)[None], class_mass=total)
    common = reconstruct_classes(whole, *grid.arguments).regularised[0, 0]
    pairs = [symmetrise(d.copy(), w.copy(), grid.operators) for d, w in zip(sums.data, sums.weight, strict=True)]
    own = replace(sums, data=[d for d, _ in pairs], weight=[w for _, w in pairs])
    size = grid.box, grid.padding, grid.kmax
    plain = np.stack([solve_class(own, c, *size, None, grid.sphere) for c in range(len(pairs))])
    return np.asarray(common + plain - np.tensordot(sums.class_mass / total, plain, 1))


def separable_shell(n_particles: float, n_operators: int, mask: FloatArray) -> int:
    """The shell up to which a class has `PARTICLES_PER_VALUE` particles for each value of its map under the mask."""
    values = n_particles * n_operators / PARTICLES_PER_VALUE
    share = float((mask.astype(np.float64) ** 2).mean())
    return max(4, int((3 * values / (4 * np.pi * share)) ** (1 / 3)))


def envelope(volume: FloatArray, pixel_size: float) -> FloatArray | None:
    """A soft mask around the particle of a map and a little more; None where nothing stands out."""
    smooth = low_pass(volume, pixel_size, ENVELOPE_RESOLUTION)
    try:
        threshold = automatic_threshold(smooth, pixel_size)
    except InputError:
        return None
    inside = largest_pieces(smooth >= threshold).astype(np.float32)
    extend, edge = (a / pixel_size for a in ENVELOPE_MARGIN)
    return np.asarray(soft_mask(inside, 0.5, extend, edge), np.float32)


def evident(folds: FloatArray, share: FloatArray, bootstrap: int) -> FloatArray:
    """Maps of folds (n_folds, n_classes, box, box, box), their differences filtered to what stands out of the noise.

    Parameters
    ----------
    share : (n_classes,) shares of the classes.
    bootstrap : shells up to which differences stay as they are, so that they can grow.

    Notes
    -----
    The Wiener filter of the difference between a class and the mean of all, alike for all classes: 1 - noise / power,
    the noise from the jackknife (see `noise_penalty`), both over three shells.
    """
    box = folds.shape[-1]
    mean = np.einsum("c,fczyx->fzyx", share, folds)[:, None]
    difference = forward(folds - mean, 3)
    centre = difference.mean(0)
    shells = rfft_shells(box, 3)
    n_shells = box // 2 + 1

    def power(values: FloatArray) -> FloatArray:
        per_class = np.stack([shell_average(np.abs(v) ** 2, 3)[:n_shells] for v in values])
        return np.convolve(share @ per_class, np.ones(3), "same")

    noise, total = sum(power(fold - centre) for fold in difference), power(centre)
    kept = np.clip(1 - np.divide(noise, total, out=np.ones_like(total), where=total > 0), 0, 1)
    kept[: bootstrap + 1] = 1
    filtered = difference * kept[np.minimum(shells, n_shells - 1)]
    return np.asarray(mean + inverse(filtered, box, 3), np.float32)


def noise_penalty(folds: FloatArray, share: FloatArray, signal_power: FloatArray) -> FloatArray:
    """By how much the noise of its map lowers an image's log-likelihood in each class, per shell (n_classes, n_shells).

    Parameters
    ----------
    folds : (n_folds, n_classes, box, box, box), each made without the images of its fold.
    share : (n_classes,) shares of the classes.
    signal_power : (n_shells,) sum of W |P|^2 over the pixels of a shell, for an average image.

    Notes
    -----
    Half of W |noise|^2. An image that is no part of the map gains nothing from its noise, so that without this term
    small classes, whose maps have more of it, would lose their images to large ones. The noise is the jackknife's:
    the maps without one fold scatter about their mean with, in sum, the variance of one of them.
    """

    def power(volume: FloatArray) -> FloatArray:
        return np.asarray(shell_average(np.abs(forward(volume, 3)) ** 2, 3)[: len(signal_power)])

    means = folds.mean(0)
    signal = sum(p * power(mean) for p, mean in zip(share, means, strict=True))
    noise = np.stack([sum(power(fold[c] - mean) for fold in folds) for c, mean in enumerate(means)])
    ratio = np.divide(noise, signal, out=np.zeros_like(noise), where=signal > 0)
    return np.asarray(signal_power * ratio / 2)

"""Atomic models as arrays, and the density electrons see in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from spa.errors import InputError
from spa.fourier import forward, inverse
from spa.grids import rfft_frequencies

Floats = NDArray[np.float64]

_OVERSAMPLING = 1.5
_BLUR = 1.4  # voxels of the fine grid; with 1.5-fold oversampling aliases stay below 3e-6
_REACH = 5.2  # standard deviations to which an atom is drawn


@dataclass(frozen=True)
class Atoms:
    """Atoms of a model.

    Attributes
    ----------
    positions : float64 (n, 3), x, y, z in Å.
    elements : str (n,), element symbols.
    b_factors : float64 (n,), in Å².
    occupancies : float64 (n,).
    """

    positions: Floats
    elements: NDArray[np.str_]
    b_factors: Floats
    occupancies: Floats

    def __len__(self) -> int:
        return len(self.positions)

    def moved(self, rotation: Floats, translation: Floats) -> Atoms:
        """The atoms at rotation @ position + translation."""
        positions = self.positions @ np.asarray(rotation).T + translation
        return Atoms(positions, self.elements, self.b_factors, self.occupancies)

    def centred(self) -> Atoms:
        """The atoms with their mean at the origin."""
        return self.moved(np.eye(3), -self.positions.mean(axis=0))

    def radius(self) -> float:
        """The largest distance from the origin in Å."""
        return float(np.linalg.norm(self.positions, axis=1).max())


def joined(parts: list[Atoms]) -> Atoms:
    """All atoms of several models as one."""
    return Atoms(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.elements for part in parts]),
        np.concatenate([part.b_factors for part in parts]),
        np.concatenate([part.occupancies for part in parts]),
    )


def density(atoms: Atoms, factors: dict[str, Floats], box_size: int, pixel_size: float) -> NDArray[np.float32]:
    """The scattering density of a model, band-limited to the grid.

    Parameters
    ----------
    atoms : model whose origin goes to the box centre, index box_size // 2.
    factors : for each element float64 (2, 5), the amplitudes a (Å) and widths b (Å²) of its electron scattering
        factor, sum of a exp(-b s² / 4) at the spatial frequency s in 1/Å.
    box_size : even, pixels; pixel_size : Å.

    Returns
    -------
    float32 (box, box, box), axes (z, y, x), in Å per Å³.

    Raises
    ------
    InputError
        If an atom lies outside the box or an element has no scattering factor.

    Notes
    -----
    Atoms are drawn as Gaussians of their B-factor plus a blur on a finer grid, cropped in Fourier space, and freed of
    the blur while the scattering factor is multiplied in: exact below Nyquist to about 1e-5.
    """
    extent = box_size * pixel_size
    if not np.all(np.abs(atoms.positions) < extent / 2):
        reach = 2 * float(np.abs(atoms.positions).max())
        raise InputError(f"model of {reach:.0f} Å across does not fit the box of {box_size} px = {extent:.0f} Å")
    fine = next_fast_len(int(np.ceil(_OVERSAMPLING * box_size / 2)), real=True) * 2
    fine_pixel = extent / fine
    frequencies = rfft_frequencies(box_size, 3)
    s2 = np.asarray(sum(np.asarray(k, dtype=np.float64) ** 2 for k in frequencies)) / extent**2
    unblur = np.exp(2 * (np.pi * _BLUR * fine_pixel) ** 2 * s2)
    total = np.zeros(s2.shape, dtype=np.complex64)
    for element in np.unique(atoms.elements):
        if element not in factors:
            raise InputError(f"element {element}: no electron scattering factor is known")
        chosen = atoms.elements == element
        sigma = np.sqrt(atoms.b_factors[chosen] / (8 * np.pi**2) / fine_pixel**2 + _BLUR**2)
        grid = np.zeros((fine, fine, fine), dtype=np.float32)
        _draw(grid, atoms.positions[chosen] / fine_pixel + fine // 2, sigma, atoms.occupancies[chosen])
        amplitudes, widths = factors[str(element)]
        factor = sum(a * np.exp(-b / 4 * s2) for a, b in zip(amplitudes, widths, strict=True))
        total += (factor * unblur).astype(np.float32) * _crop(forward(grid, 3), box_size)
    return np.asarray(inverse(total, box_size, 3) / pixel_size**3, dtype=np.float32)


def _crop(ft: NDArray[np.complex64], box_size: int) -> NDArray[np.complex64]:
    """The low frequencies of a transform in the rfft layout of a smaller box, without its Nyquist terms."""
    half = box_size // 2
    kept = np.fft.fftfreq(box_size, 1 / box_size).astype(int)
    ft = ft[np.ix_(kept, kept, np.arange(half + 1))]
    ft[half], ft[:, half], ft[:, :, half] = 0, 0, 0
    return ft


@njit(cache=True)
def _draw(grid, centres, sigmas, weights):  # type: ignore[no-untyped-def]
    """Add unit Gaussians times a weight to a periodic grid (z, y, x); centres (n, 3) are (x, y, z) in voxels."""
    size = grid.shape[0]
    for n in range(len(centres)):
        reach = int(np.ceil(_REACH * sigmas[n]))
        first = np.floor(centres[n]).astype(np.int64) - reach
        line = np.empty((3, 2 * reach + 2))
        for axis in range(3):
            for i in range(line.shape[1]):
                line[axis, i] = np.exp(-0.5 * ((first[axis] + i - centres[n, axis]) / sigmas[n]) ** 2)
        line[0] *= weights[n] / (np.sqrt(2 * np.pi) * sigmas[n]) ** 3
        for k in range(line.shape[1]):
            for j in range(line.shape[1]):
                plane = line[2, k] * line[1, j]
                for i in range(line.shape[1]):
                    grid[(first[2] + k) % size, (first[1] + j) % size, (first[0] + i) % size] += plane * line[0, i]

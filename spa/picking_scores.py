"""Normalised local correlation of a prepared micrograph with many small images at once. Arrays only.

The score of an image at a place is its correlation with the micrograph there under a disc, both of mean 0, times the
square root of the number of pixels: where there is noise alone it has a standard deviation of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spa.grids import radius_grid
from spa.kernels.backend import Array, fft_of, fft_workers, xp_of
from spa.picking_image import Prepared, fast_shape

SCORES_AT_ONCE = 1 << 25
"""Pixels times templates that are scored together."""

_COVERED = 0.55  # of the disc that must lie on usable ground
_FLATTEST = 0.3  # of the usual deviation: a smoother place is taken for as rough as that
_KEPT = 0.98  # of the templates' power by their principal components
_AS_THEY_ARE = 8  # templates that are not worth finding the components of
_TRANSFORMS_AT_ONCE = 1 << 24  # pixels


class Field:
    """A prepared micrograph, ready to be correlated under a disc of `radius` pixels.

    Attributes
    ----------
    inside : bool (box, box), the disc. mean, deviation : float32 (rows, columns), of the micrograph under the disc.
    usable : bool, like it, as given. valid : bool, like it, where enough of the disc is usable.
    """

    def __init__(self, values: Array, usable: Array, radius: float) -> None:
        self.xp, self.fft = xp_of(values), fft_of(values)
        xp = self.xp
        self.radius, self.usable = radius, usable
        self.box = 2 * (int(np.ceil(radius)) + 1)
        self.inside = radius_grid(self.box, 2) <= radius
        self._shape = fast_shape(values.shape, self.box)
        self._size = values.shape
        self._ft = self._transform(values)
        disc = xp.asarray(self.inside.astype(np.float32))[None]
        counts, sums, squares = (
            self._correlated(self._transform(part.astype(np.float32)), disc)[0] for part in (usable, values, values**2)
        )
        counts = xp.maximum(counts, 1)
        self.mean = (sums / counts).astype(np.float32)
        variance = squares / counts - self.mean**2
        self.valid = usable & (counts >= _COVERED * self.inside.sum())
        self.deviation = xp.maximum(xp.sqrt(xp.maximum(variance, 0)), _FLATTEST).astype(np.float32)

    @classmethod
    def of(cls, prepared: Prepared, radius: float) -> Field:
        """The field of a prepared micrograph."""
        return cls(prepared.values, prepared.usable, radius)

    def best(self, bank: Bank, which: Array) -> tuple[Array, Array]:
        """The best score of any of the chosen templates at each pixel, and which it was, of (rows, columns).

        Parameters
        ----------
        bank : templates under the disc of this field.
        which : int (m,), numbers of the templates that take part.

        Returns
        -------
        float32 score, minus infinity where too little of the disc is usable; int32 number of the template.
        """
        return self.best_of([which], bank)[0]

    def best_of(self, groups: Sequence[Array], bank: Bank) -> list[tuple[Array, Array]]:
        """As `best` for several groups of templates, whose transforms are made once."""
        xp = self.xp
        responses = self._correlations(bank.images).reshape(len(bank.images), -1)
        found = []
        for group in groups:
            group = xp.asarray(group)
            weights = xp.ascontiguousarray(bank.weights[group].T)
            score = xp.empty(responses.shape[1], dtype=np.float32)
            label = xp.empty(responses.shape[1], dtype=np.int32)
            together = max(1, SCORES_AT_ONCE // len(group))
            for start in range(0, responses.shape[1], together):
                part = slice(start, start + together)
                products = responses[:, part].T @ weights
                first = products.argmax(axis=1)
                label[part] = group[first]
                score[part] = xp.take_along_axis(products, first[:, None], axis=1)[:, 0]
            score = xp.where(self.valid, score.reshape(self._size) / self.deviation, -np.inf)
            found.append((score.astype(np.float32), label.reshape(self._size)))
        return found

    def _correlations(self, images: Array) -> Array:
        """Correlation with images (n, n_pixels) under the disc, float32 (n, rows, columns), not normalised."""
        xp = self.xp
        out = xp.empty((len(images), *self._size), dtype=np.float32)
        together = max(1, _TRANSFORMS_AT_ONCE // int(np.prod(self._shape)))
        mask = xp.asarray(self.inside)
        for start in range(0, len(images), together):
            part = images[start : start + together]
            kernels = xp.zeros((len(part), self.box, self.box), dtype=np.float32)
            kernels[:, mask] = part
            out[start : start + together] = self._correlated(self._ft, kernels)
        return out

    def _transform(self, image: Array) -> Array:
        return self.fft.rfft2(image, s=self._shape, **fft_workers(image))

    def _correlated(self, ft: Array, kernels: Array) -> Array:
        """Correlation of the image behind `ft` with kernels (n, box, box), whose centre is at box // 2."""
        products = self._kernel_transforms(kernels)
        self.xp.conj(products, out=products)
        products *= ft
        found = self.fft.irfft2(products, s=self._shape, overwrite_x=True, **fft_workers(ft))
        return found[:, : self._size[0], : self._size[1]]

    def _kernel_transforms(self, kernels: Array) -> Array:
        """Transforms of kernels (n, box, box) at the origin: the rows that hold nothing are not transformed."""
        xp, half = self.xp, self.box // 2
        rows, columns = self._shape
        lines = xp.zeros((*kernels.shape[:2], columns), dtype=np.float32)
        lines[:, :, :half], lines[:, :, columns - half :] = kernels[:, :, half:], kernels[:, :, :half]
        lines = self.fft.rfft(lines, axis=2, **fft_workers(kernels))
        planes = xp.zeros((len(kernels), rows, lines.shape[2]), dtype=np.complex64)
        planes[:, :half], planes[:, rows - half :] = lines[:, half:], lines[:, :half]
        return self.fft.fft(planes, axis=1, overwrite_x=True, **fft_workers(kernels))


def unit(templates: Array) -> Array:
    """Templates (n, n_pixels) with mean 0 and sum of squares 1, float32."""
    xp = xp_of(templates)
    centred = templates - templates.mean(axis=1, keepdims=True)
    norm = xp.sqrt((centred**2).sum(axis=1, keepdims=True, dtype=np.float64))
    return (centred / xp.maximum(norm, 1e-30)).astype(np.float32)


@dataclass(frozen=True)
class Bank:
    """Templates as combinations of fewer images.

    images : float32 (k, n_pixels). weights : float32 (n, k); the templates are weights @ images.

    Notes
    -----
    Templates that differ by a rotation or a little are combinations of their principal components: only these need
    transforms, and the scores of all templates are products of matrices.
    """

    images: Array
    weights: Array

    @classmethod
    def of(cls, templates: Array, kept: float = _KEPT) -> Bank:
        """The bank of templates (n, n_pixels) that keeps the fraction `kept` of their sum of squares."""
        xp = xp_of(templates)
        if len(templates) <= _AS_THEY_ARE:
            return cls(templates, xp.eye(len(templates), dtype=np.float32))
        few = len(templates) < templates.shape[1]
        rows = templates.T if few else templates
        power, vectors = xp.linalg.eigh((rows.T @ rows).astype(np.float64))
        power, vectors = xp.maximum(power[::-1], 0), vectors[:, ::-1].astype(np.float32)
        share = xp.cumsum(power) / power.sum()
        k = min(int((share < kept).sum()) + 1, len(power))
        images = vectors[:, :k].T
        if few:
            images = images @ templates / xp.sqrt(power[:k, None]).astype(np.float32)
        images = xp.ascontiguousarray(images)
        return cls(images, xp.ascontiguousarray(templates @ images.T))


def noise_field(radius: float, shape: tuple[int, int], seed: int, like: Array) -> Field:
    """A field of white noise, to see what noise alone scores."""
    xp = xp_of(like)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return Field(xp.asarray(noise), xp.ones(shape, dtype=bool), radius)

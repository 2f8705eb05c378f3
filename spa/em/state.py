"""What one iteration hands to the next: the maps and noise of each half set, and the pose of each particle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from spa.grids import FourierPixels
from spa.kernels.backend import Array

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass
class State:
    """Everything the expectation step needs besides the images; the first axis is the half set.

    Attributes
    ----------
    maps : float32 (n_halves, n_classes, box, box, box), regularised references on the scale of the images; 2D
        references lack one axis.
    sigma2 : float64 (n_halves, n_optics, n_shells), noise variance of the real and of the imaginary part.
    tau2 : float64 (n_halves, n_classes, n_shells), signal power (prior variance).
    ssnr : float64, the same shape, ratio of signal to noise in the maps.
    fsc : float64 (n_shells,), between the two halves.
    pdf_class : float64 (n_halves, n_classes).
    offset_sigma : standard deviation of the shifts, pixels.
    kmax : Fourier radius of the maps, pixels ("current size" is twice that); `Schedule.advance` sets the next one.
    score_kmax : Fourier radius up to which the next iteration compares images with references; what lies
        beyond stays free of the alignment, so that an FSC there is evidence.
    resolution_shell : last shell at which the halves agree, or the best class has more signal than noise.
    class_accuracy : (n_classes, 2), expected accuracy of rotations (degrees) and shifts (pixels) in each class.
    class_entropy : mean entropy of a particle's assignment to classes, in units of log(n_classes).
    class_changes : share of the particles that changed their class in the last iteration.
    """

    maps: FloatArray
    sigma2: FloatArray
    tau2: FloatArray
    ssnr: FloatArray
    fsc: FloatArray
    pdf_class: FloatArray
    offset_sigma: float
    kmax: int
    score_kmax: int
    resolution_shell: int
    iteration: int = 0
    ave_pmax: float = 0.0
    accuracy_rotations: float = 999.0
    accuracy_offsets: float = 999.0
    log_likelihood: float = 0.0
    class_accuracy: FloatArray | None = None
    class_entropy: float = 0.0
    class_changes: float = 1.0

    @property
    def n_halves(self) -> int:
        """Number of half sets: 2, or 1 where nothing is to be validated."""
        return int(self.maps.shape[0])

    @property
    def n_classes(self) -> int:
        """Number of references per half set."""
        return int(self.maps.shape[1])

    @property
    def class_shells(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The last shell up to which each map of the first half has more signal than noise, (n_classes,)."""
        return resolved_shells(self.ssnr[0])

    @property
    def box_size(self) -> int:
        """Box size in pixels."""
        return int(self.maps.shape[-1])


def resolved_shells(ssnr: FloatArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The last shell before two in a row have less signal than noise, (n_classes,), from ratios (n_classes, n_shells).

    A single weak shell may be a node of the particle's own transform.
    """
    weak = np.pad(ssnr[:, 1:] < 1, ((0, 0), (0, 2)), constant_values=True)
    return np.asarray((weak[:, :-1] & weak[:, 1:]).argmax(1), dtype=np.int64)


@dataclass
class Poses:
    """The current estimate for each particle, in particle order.

    Attributes
    ----------
    rotations : float64 (n, 3, 3) Euler matrices (posterior mean).
    origins : float64 (n, 2) shift (x, y) in pixels that centres the image (posterior mean).
    known : bool (n,), whether the particle has been aligned.
    pmax, log_likelihood, nr_significant : (n,) as in rlnMaxValueProbDistribution,
        rlnLogLikeliContribution, rlnNrOfSignificantSamples.
    norm : float64 (n,) noise level by which the image is divided, mean one over the set.
    class_number : int32 (n,), from zero.
    """

    rotations: FloatArray
    origins: FloatArray
    known: np.ndarray[Any, np.dtype[np.bool_]]
    pmax: FloatArray
    log_likelihood: FloatArray
    nr_significant: np.ndarray[Any, np.dtype[np.int64]]
    norm: FloatArray
    class_number: np.ndarray[Any, np.dtype[np.int32]]

    @classmethod
    def unknown(cls, n: int) -> Poses:
        """Poses of `n` particles before anything is known about them."""
        return cls(
            rotations=np.tile(np.eye(3), (n, 1, 1)),
            origins=np.zeros((n, 2)),
            known=np.zeros(n, bool),
            pmax=np.zeros(n),
            log_likelihood=np.zeros(n),
            nr_significant=np.zeros(n, np.int64),
            norm=np.ones(n),
            class_number=np.zeros(n, np.int32),
        )


@dataclass
class Batch:
    """Images of one half set, transformed and centred on their last origin, on the device that scores them.

    Attributes
    ----------
    indices : int64 (n,) particle numbers (on the host).
    spectra : complex64 (n, n_pixels), half-plane pixels of the images, norm-corrected.
    scored : the same, masked when --zero_mask asks for it (otherwise the same array).
    ctf : float32 (n, n_pixels), group scale included.
    inverse_sigma2 : float32 (n, n_pixels).
    origins : float32 (n, 2) shifts in pixels already applied.
    pixels : the half-plane pixels, to the largest radius of the box.
    kx, ky : float32 (n_pixels,) Fourier pixels on the device: the frequencies of shifts.
    slice_x, slice_y : float32 (n_pixels,) positions on the central slice that the pixels sample; kx, ky unless
        the magnification of the images is anisotropic (see `spa.aberrations`).
    magnification : number of the magnification that all images of the batch share; batches of different numbers
        have different slices.
    """

    indices: np.ndarray[Any, np.dtype[np.int64]]
    spectra: Array
    scored: Array
    ctf: Array
    inverse_sigma2: Array
    origins: Array
    pixels: FourierPixels
    kx: Array
    ky: Array
    slice_x: Array = None
    slice_y: Array = None
    magnification: int = 0

    def __post_init__(self) -> None:
        if self.slice_x is None:
            self.slice_x, self.slice_y = self.kx, self.ky

    def __len__(self) -> int:
        return len(self.indices)

    def weighted(self, kmax: int) -> tuple[Array, Array]:
        """CTF*X/sigma2 (complex64) and CTF^2/sigma2 (float32) of the scored images up to radius `kmax`."""
        n = self.pixels.prefix(kmax)
        scaled = self.ctf[:, :n] * self.inverse_sigma2[:, :n]
        return self.scored[:, :n] * scaled, scaled * self.ctf[:, :n]


@dataclass
class Sums:
    """What the maximisation step needs from one half set; partial sums add, wherever they were computed.

    Attributes
    ----------
    data, weight : accumulators (n_classes, half volume), complex64 and float32.
    noise_power : float64 (n_optics, n_shells), residual power, real and imaginary part averaged.
    images : float64 (n_optics,).
    signal_cross, signal_power : float64 (n_groups, n_shells), sums of Re(A*X) and |A|^2 over pixels,
        A = CTF * projection, both over sigma2.
    """

    data: Array
    weight: Array
    noise_power: FloatArray
    images: FloatArray
    signal_cross: FloatArray
    signal_power: FloatArray
    class_mass: FloatArray
    class_entropy: float = 0.0
    offset_square: float = 0.0
    log_likelihood: float = 0.0
    pmax: float = 0.0
    candidates: float = 0.0

    def decayed(self, share: float) -> Sums:
        """What stays of sums when they fade."""
        return Sums(**{f.name: getattr(self, f.name) * share for f in fields(self)})

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.data + other.data,
            self.weight + other.weight,
            self.noise_power + other.noise_power,
            self.images + other.images,
            self.signal_cross + other.signal_cross,
            self.signal_power + other.signal_power,
            self.class_mass + other.class_mass,
            self.class_entropy + other.class_entropy,
            self.offset_square + other.offset_square,
            self.log_likelihood + other.log_likelihood,
            self.pmax + other.pmax,
            self.candidates + other.candidates,
        )

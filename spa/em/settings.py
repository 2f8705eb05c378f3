"""What a refinement is asked to do: the options every refinement job shares, and the constants of the search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spa.em.steerable import Precision
from spa.options import CommonOptions, option


@dataclass(frozen=True, kw_only=True)
class SearchOptions(CommonOptions):
    """Options of every job that aligns particles to references; names, units and meaning are RELION's."""

    i: str = option(help="Particles STAR file", role="input")
    o: str = option(help="Output rootname, for example Refine3D/job001/run", role="rootname")
    ctf: bool = option(False, help="Correct for the contrast transfer function", group="CTF")
    particle_diameter: float = option(
        -1.0,
        help="Diameter of the circular mask (-1: 90 % of the box)",
        unit="Å",
        group="Optimisation",
        bounds=(-1.0, 10000.0),
    )
    flatten_solvent: bool = option(
        False, help="Mask the references with a soft sphere of --particle_diameter", group="Optimisation"
    )
    zero_mask: bool = option(
        False,
        help="Mask the images with zeros outside --particle_diameter when scoring",
        group="Optimisation",
    )
    norm: bool = option(False, help="Correct each image's noise level", group="Optimisation")
    scale: bool = option(False, help="Correct the signal's intensity per micrograph", group="Optimisation")
    tau2_fudge: float = option(1.0, help="Regularisation parameter T", group="Optimisation", bounds=(1e-3, 100.0))
    pad: int = option(2, help="Padding factor of the Fourier transforms", group="Optimisation", bounds=(1, 3))
    oversampling: int = option(1, help="Levels of oversampling below --healpix_order", group="Sampling", bounds=(1, 3))
    offset_range: float = option(
        6.0,
        help="Search range of the shifts around the last one",
        unit="px",
        group="Sampling",
        bounds=(0.0, 200.0),
    )
    offset_step: float = option(
        2.0,
        help="Step of the shifts before oversampling",
        unit="px",
        group="Sampling",
        bounds=(0.05, 50.0),
    )
    mem: float = option(
        0.0,
        help="Memory budget (0: half of what is free)",
        unit="GiB",
        group="Compute",
        bounds=(0.0, 10000.0),
    )


@dataclass(frozen=True, kw_only=True)
class RefinementOptions(SearchOptions):
    """Options of the jobs whose references are maps."""

    ref: str = option(help="Reference map (MRC)", group="Reference", role="input")
    ini_high: float = option(
        -1.0,
        help="Low-pass the reference to this resolution first (-1: as it is)",
        unit="Å",
        group="Reference",
        bounds=(-1.0, 1000.0),
    )
    firstiter_cc: bool = option(
        False,
        help="The reference's grey scale is not that of the images: first iteration by normalised "
        "cross-correlation (decided automatically when not given)",
        group="Reference",
    )
    sym: str = option("C1", help="Point group: Cn, Dn, T, O, I1 to I4", group="Reference")
    solvent_mask: str | None = option(
        None,
        help="Mask (MRC, 0 to 1) for the references instead of the sphere",
        group="Optimisation",
        role="input",
    )
    healpix_order: int = option(
        2,
        help="Angular sampling before oversampling (2: 15°, 3: 7.5°, ...)",
        group="Sampling",
        bounds=(0, 7),
    )


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(SearchOptions):
    """Options of the jobs that sort particles into classes."""

    nr_classes: int = option(help="Number of classes", flag="--K", group="Classes", bounds=(1, 1000))
    iter: int = option(25, help="Number of iterations", group="Classes", bounds=(1, 999))
    strict_highres_exp: float = option(
        -1.0,
        help="Never compare images and references beyond this resolution (-1: no limit)",
        unit="Å",
        group="Classes",
        bounds=(-1.0, 1000.0),
    )
    grad: bool = option(
        False,
        help="Iterations but the last see small parts of the particles, which grow, and carry references on: the cost "
        "depends little on the number of particles",
        group="Classes",
    )


@dataclass(frozen=True)
class Search:
    """Constants of the descent, each with its reason; the defaults are the measured ones.

    Notes
    -----
    A level that is not the last decides on a coarse grid and at a low resolution, so its posterior is
    tempered: candidates are ranked by exp(temperature * LL) and kept until they hold `mass` of it.
    """

    precision: Precision = field(default_factory=Precision)
    """How closely steerable scores follow slices (see `spa.em.steerable`): 0.05 rms of the log-likelihood in all."""
    coarse_tolerance: float = 0.3
    """The tolerance of levels that only choose candidates, in place of that of `precision`: far below what their
    coarseness costs."""
    unscaled_share: float = 0.005
    """While the grey scale is being fitted, the share of the signal's amplitude that a basis may leave out."""
    dense_order: int = 2
    """HEALPix order of the dense first level of a global search: 192 directions, 15° apart."""
    temperature: float = 0.4
    """Exponent of the tempered selection at the two coarsest levels, where they look as far out as their angular
    step allows (`resolved_kmax`); nearer to 1 where they look less far and the step matters less."""
    coarse_error: float = 0.2
    """Share of the best log-likelihood by which such a level may misjudge a candidate: the stronger the signal,
    the more its error outweighs differences between candidates, so the temperature falls with it."""
    mass: float = 0.999
    """Share of the tempered posterior that survives a level."""
    dense_cap: int = 400
    """Most survivors an image may keep after the dense level; more brought nothing on real particles."""
    level_cap: int = 500
    """Most survivors an image may keep after a later level. With these four settings, and the last pose among the
    candidates, poses end 1 to 4 % worse than those of an exhaustive search; at 0.3, 0.3, 500 and 600 no better."""
    rescue_cap: int = 150
    """Most survivors after any level of the global search before convergence: it looks for what is clearly better than
    the last pose, and cannot lose that one."""
    insertion_mass: float = 0.98
    """Share of the posterior that enters the maximisation step; 0.998 costs a fifth more time for 1 % in angle."""
    insertion_cap: int = 1000
    """Most candidates of an image that enter it; only the first iterations, with broad posteriors, reach it."""
    resolution_factor: float = 1.2
    """kmax of a level: this many times the resolution at which half an angular step is half a wavelength."""
    offset_phase: float = 0.35
    """Largest shift step of the dense level, in periods of its highest frequency."""
    refined_offsets: int = 2
    """Number of levels below the first that also halve the shift step."""
    local_directions: int = 9
    """Directions around the last pose at the first level of a local search (the nearest and its neighbours)."""
    local_psi: int = 1
    """In-plane steps on either side of the last pose at that level."""
    local_offset_radius: int = 2
    """Radius of the disc of shifts around the last one at that level, in its steps."""
    known_directions: int = 4
    """Directions around the last pose that join the survivors of a global search before its last level: what has been
    found is not lost to pruning."""
    known_psi: int = 1
    """In-plane steps on either side of the last pose that go with them: poses end 3 % better than with none, for what
    surrounds the likeliest pose is part of its mean."""
    known_offset_radius: int = 1
    """Radius of the disc of shifts around the last one that go with them, in that level's steps."""
    foothold: tuple[int, int] = (1, 0)
    """Directions and in-plane steps that join instead where the search before convergence only compares poses, and
    where there are several classes, in each of them."""
    mean_pose_angle: float = 12.0
    """Candidates farther than this from the best one (degrees) are another mode, not part of its mean pose."""
    mean_pose_weight: float = 0.02
    """Candidates below this share of the best weight do not enter the mean pose."""

    def resolved_kmax(self, angular_step: float, radius: float, box: int) -> float:
        """Fourier radius beyond which an angular step (degrees) is too coarse at the edge of a particle (pixels)."""
        return self.resolution_factor * box / (math.radians(angular_step) * radius)

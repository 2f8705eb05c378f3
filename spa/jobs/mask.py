"""Make a soft mask around the particle of a map, with the threshold found automatically if not given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa.errors import InputError
from spa.fourier import low_pass
from spa.io import mrc, plots
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host
from spa.mask import automatic_threshold, largest_pieces, soft_mask
from spa.options import CommonOptions, option

AUTOMATIC_LOWPASS = 15.0
_LARGE = 0.5


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa mask`, named as in relion_mask_create."""

    i: str = option(help="Map to mask", role="input")
    o: str = option("mask.mrc", help="Mask to write; a picture of it goes beside it as .png", role="file")
    angpix: float = option(-1.0, help="Pixel size", unit="Å", default_text="the map's header")
    ini_threshold: float | None = option(
        None, help="Lowest density of the particle", group="Mask", default_text="found automatically"
    )
    lowpass: float | None = option(
        None,
        help="Low-pass filter before the threshold; negative for none",
        unit="Å",
        group="Mask",
        default_text="15 with an automatic threshold, else none",
    )
    extend_inimask: float = option(3.0, help="Extend by (negative: shrink)", unit="pixels", group="Mask")
    width_soft_edge: float = option(
        6.0, help="Width of the soft edge outside that", unit="pixels", bounds=(0, None), group="Mask"
    )
    invert: bool = option(False, help="Write 1 - mask", group="Mask")


def run(options: Options, job: Job) -> None:
    """Read the map, threshold it, extend and soften the mask, write mask and picture."""
    volume, pixel_size = mrc.read_volume(options.i, options.angpix)
    filtered = _filtered(volume, pixel_size, options, job)
    binary = _binary(filtered, pixel_size, options, job)
    mask = soft_mask(binary, 0.5, options.extend_inimask, options.width_soft_edge)
    _judge(mask, options, job)
    if options.invert:
        mask = 1 - mask
    mrc.write_volume(options.o, mask, pixel_size)
    picture = Path(options.o).with_suffix(".png")
    plots.save(picture, plots.slices({"map": volume, "thresholded map": filtered}, pixel_size, contour=mask))
    job.say(f"wrote {options.o} and {picture}")


def _filtered(volume: Array, pixel_size: float, options: Options, job: Job) -> Array:
    resolution = options.lowpass
    if resolution is None:
        resolution = AUTOMATIC_LOWPASS if options.ini_threshold is None else -1.0
    if resolution <= 0:
        return volume
    if resolution <= 2 * pixel_size:
        job.say(f"low-pass at {resolution:g} A does nothing to pixels of {pixel_size:g} A")
        return volume
    job.say(f"low-pass at {resolution:g} A")
    device = job.devices[0] if job.devices else None
    return to_host(low_pass(to_device(volume, device), pixel_size, resolution))


def _binary(volume: Array, pixel_size: float, options: Options, job: Job) -> Array:
    """The voxels that belong to the particle, and what there is to say about the threshold."""
    if options.ini_threshold is None:
        try:
            threshold = automatic_threshold(volume, pixel_size)
        except InputError as error:
            raise InputError(f"{options.i}: {error}") from None
        above = volume >= threshold
        binary = largest_pieces(above)
        origin = "found automatically"
        dropped = int(above.sum() - binary.sum())
        if dropped:
            job.say(f"dropped {dropped:,} voxels in small detached pieces")
    else:
        threshold, origin = options.ini_threshold, "given"
        binary = volume >= threshold
    low, high = float(volume.min()), float(volume.max())
    if not binary.any():
        raise InputError(f"{options.i}: empty mask: threshold {threshold:.5g}, highest {high:.5g}")
    if binary.all():
        raise InputError(f"{options.i}: mask of everything: threshold {threshold:.5g}, lowest {low:.5g}")
    job.say(
        f"threshold {threshold:.5g} ({origin}): {binary.mean():.2%} of the box, {binary.sum() * pixel_size**3:,.0f} A^3"
    )
    return binary


def _judge(mask: Array, options: Options, job: Job) -> None:
    """Warn of a mask that is cut by the box, or that leaves too little solvent; refuse one without any."""
    fraction = float(mask.mean())
    job.say(
        f"extended by {options.extend_inimask:g} px, soft edge of {options.width_soft_edge:g} px: "
        f"{fraction:.2%} of the box"
    )
    if not mask.any():
        raise InputError(f"{options.i}: empty mask: --extend_inimask leaves nothing of it")
    if mask.min() >= 1:
        raise InputError(f"{options.i}: mask of everything: raise --ini_threshold or lower --extend_inimask")
    faces = [np.take(mask, (0, -1), axis=axis) for axis in range(3)]
    if any(face.max() > 0 for face in faces):
        job.warn(
            "the mask reaches the edge of the box, where it is cut: the particle needs a larger box, "
            "or the mask a higher --ini_threshold or a smaller extension"
        )
    if fraction > _LARGE:
        job.warn(f"the mask holds {fraction:.0%} of the box: it hardly removes solvent")

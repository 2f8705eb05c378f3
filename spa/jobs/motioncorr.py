"""Align the frames of movies and sum them, weighted by dose: whole frames, then patches with RELION's local model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa.dose import voltage_factor
from spa.errors import InputError
from spa.io import motion_plots, mrc, plots
from spa.io.detector import gain_for_movie, read_defects, read_gain
from spa.io.files import project_path
from spa.io.motion_star import write_motion
from spa.io.movie import open_movie
from spa.io.movie_frames import MovieFrames
from spa.io.star import Block
from spa.io.tiff_pages import EER_SUFFIXES
from spa.job import Job
from spa.kernels.backend import Array, fft_of, fft_workers, to_device, to_host, xp_of
from spa.map_job import Item, MicrographOptions, Row, map_micrographs, worker_device
from spa.motion import Track, align_frames
from spa.motion_fourier import crop_transform, moved, working_shape
from spa.motion_model import LocalModel
from spa.motion_patches import Patches, align_patches
from spa.motion_sum import Exposure, FrameSum, SpectrumSum, binned_transform, binning
from spa.options import UsageError, option

FOUND = "spaMotionFound"
"""Column: 1 where the frames correlate, 0 where they do not and were summed as they are."""

BLANK = "spaBlankFrames"
"""Column: frames that hold one value in every pixel, as a frame lost by the camera does."""

_OWNED = (
    "rlnMicrographName",
    "rlnMicrographNameNoDW",
    "rlnCtfPowerSpectrum",
    "rlnMicrographMetadata",
    "rlnAccumMotionTotal",
    "rlnAccumMotionEarly",
    "rlnAccumMotionLate",
    FOUND,
    BLANK,
)
_GAIN = "gain"  # name of the turned gain reference
_COPIES = 3  # the frames as stored, their transforms and what patches are cut from, as float32 at most
_REACH = 100.0  # Å that a frame may lie away from the mean of all
_EARLY_DOSE = 4.0  # e/Å^2, RELION's border between early and late motion
_SMALLEST_PATCH = 24  # pixels of the cropped frame


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """Options of `spa motioncorr`, named as in relion_run_motioncorr (--use_own)."""

    i: str = option(help="STAR file of the movies", role="input")
    o: str = option("MotionCorr/", help="Output folder", role="folder")
    patch_x: int = option(1, help="Patches along x; 1 for whole frames only", bounds=(1, 50), group="Motion")
    patch_y: int = option(1, help="Patches along y", bounds=(1, 50), group="Motion")
    bfactor: float = option(
        150.0, help="B-factor of the filter on correlations", unit="Å^2", bounds=(1, None), group="Motion"
    )
    bin_factor: float = option(
        1.0, help="Binning of the output, which need not be whole", bounds=(1, 16), group="Output"
    )
    grouping_for_ps: int = option(
        -1,
        help="Frames averaged before their amplitude spectra are summed for ctffind; none if not positive",
        group="Output",
    )
    ps_size: int = option(512, help="Box of that spectrum", unit="pixels", bounds=(64, 4096), group="Output")
    dose_weighting: bool = option(False, help="Weight frames by what radiation damage leaves of them", group="Dose")
    save_noDW: bool = option(False, help="With --dose_weighting: write the plain sum as well", group="Dose")
    dose_per_frame: float = option(
        -1.0, help="Exposure of a frame, after EER grouping", unit="e/Å^2", group="Dose", default_text="not known"
    )
    preexposure: float = option(
        0.0, help="Exposure before the first frame", unit="e/Å^2", bounds=(0, None), group="Dose"
    )
    gainref: str | None = option(None, help="Gain reference, MRC or TIFF", role="input", group="Detector")
    gain_rot: int = option(0, help="Quarter turns of the gain reference as in RELION", bounds=(0, 3), group="Detector")
    gain_flip: int = option(0, help="Then flip it: 1 upside down, 2 left to right", bounds=(0, 2), group="Detector")
    defect_file: str | None = option(
        None, help="Bad pixels: a map (MRC, TIFF) or a text of x y width height", role="input", group="Detector"
    )
    eer_grouping: int = option(40, help="EER frames in one frame", bounds=(1, 10000), group="Detector")
    eer_upsampling: int = option(
        1,
        help="EER pixels: 1 for those of the detector, 2 for half their size; the pixel size is theirs",
        bounds=(1, 2),
        group="Detector",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        patches = (self.patch_x, self.patch_y)
        if patches != (1, 1) and min(patches) < 3:
            raise UsageError(f"--patch_x {patches[0]} --patch_y {patches[1]}: expected 1 for both, or 3 and more")
        if self.dose_weighting and self.dose_per_frame <= 0:
            raise UsageError("--dose_weighting: expected --dose_per_frame above 0 e/Å^2")


def run(options: Options, job: Job) -> None:
    """Align and sum every movie."""
    if options.gainref:
        gain = read_gain(options.gainref, options.gain_rot, options.gain_flip)
        if options.gain_rot or options.gain_flip:
            mrc.write_stack(_turned_gain(options), gain, 1.0)
            job.say(f"wrote {_turned_gain(options)}, the gain reference as it was used")

    def optics(columns: dict[str, str]) -> Row:
        return {"rlnMicrographPixelSize": float(columns["rlnMicrographOriginalPixelSize"]) * options.bin_factor}

    table = map_micrographs(
        job,
        options,
        process,
        block="movies",
        column="rlnMicrographMovieName",
        output="corrected_micrographs.star",
        optics=optics,
        memory=partial(_memory, options),
        owns=_OWNED,
        reserved=(_GAIN,),
    )
    _warn(
        job,
        table,
        table.integers(FOUND) == 0,
        f"summed without alignment, because their frames do not correlate ({FOUND} 0)",
    )
    _warn(job, table, table.integers(BLANK) > 0, f"with frames of one value in all pixels, which add nothing ({BLANK})")


def _warn(job: Job, table: Block, concerned: NDArray[np.bool_], what: str) -> None:
    """Name the micrographs that something is the matter with, if any."""
    names = [table.text("rlnMicrographName")[row] for row in np.flatnonzero(concerned)]
    if names:
        shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        job.warn(f"{len(names)} of {len(table)} micrographs {what}: {shown}")


def process(item: Item, options: Options) -> Row:
    """Align and sum one movie, write its files and return its columns."""
    if options.dose_weighting:
        voltage_factor(float(item.optics["rlnVoltage"]))
    frames = _read(item, options)
    motion = _align(frames, item, options)
    root = str(Path(options.o) / item.stem)
    written = _write_sums(frames, motion, item, options, root)
    coefficients = None if motion.model is None else motion.model.coefficients
    local = None if motion.patches is None else (motion.patches.centres, motion.patches.measured)
    general = _general(frames, item, options)
    write_motion(f"{root}.star", general, motion.track.shifts, coefficients, frames.hot, local)
    plots.save(f"{root}_shifts.png", motion_plots.motion(_picture(frames, motion, item, options)))
    row: Row = {column: project_path(path) for column, path in written.items()}
    row["rlnMicrographMetadata"] = project_path(f"{root}.star")
    return row | _accumulated(motion.track, item, options) | {FOUND: int(motion.track.found), BLANK: frames.n_blank}


@dataclass(frozen=True)
class _Motion:
    """What was found in a movie: whole frames, and patches where they were asked for."""

    track: Track
    patches: Patches | None = None

    @property
    def model(self) -> LocalModel | None:
        """The local model, if there is one."""
        return None if self.patches is None else self.patches.model


def _read(item: Item, options: Options) -> MovieFrames:
    with open_movie(item.path, options.eer_grouping, options.eer_upsampling) as movie:
        gain = defects = None
        if options.gainref:
            turned = _gain(options.gainref, options.gain_rot, options.gain_flip)
            gain = gain_for_movie(turned, options.gainref, movie.path, movie.shape)
        if options.defect_file:
            defects = read_defects(options.defect_file, movie.shape)
        return MovieFrames(movie, gain, defects, item.random_seed)


@lru_cache(maxsize=1)
def _gain(path: str, rotation: int, flip: int) -> NDArray[np.float32]:
    return read_gain(path, rotation, flip)


def _turned_gain(options: Options) -> str:
    return str(Path(options.o) / f"{_GAIN}.mrc")


def _memory(options: Options, item: Item) -> int:
    """Bytes that a movie takes, from its header."""
    if item.path.suffix == ".gz":  # opening it would unpack all of it
        shape = mrc.info(item.path).shape
    else:
        with open_movie(item.path, options.eer_grouping, options.eer_upsampling) as movie:
            shape = (len(movie), *movie.shape)
    return _COPIES * np.dtype(np.float32).itemsize * math.prod(shape)


def _align(frames: MovieFrames, item: Item, options: Options) -> _Motion:
    bfactor = options.bfactor / item.pixel_size**2
    full, shape = frames.shape, working_shape(frames.shape, bfactor)
    n_patches = (options.patch_x, options.patch_y)
    if min(shape[1] // n_patches[0], shape[0] // n_patches[1]) < _SMALLEST_PATCH:
        size, wanted = f"{full[1]} x {full[0]}", f"{n_patches[0]} x {n_patches[1]}"
        raise InputError(f"{item.path}: frames of {size} pixels are too small for {wanted} patches")

    def small(number: int) -> Array:
        frame = to_device(frames.corrected(number), worker_device())
        return crop_transform(fft_of(frame).rfft2(frame, **fft_workers(frame)), shape)

    transforms = _stacked(len(frames), small)
    track = align_frames(transforms, shape, full, bfactor, _REACH / item.pixel_size)
    if n_patches == (1, 1) or not track.found:
        return _Motion(track)
    transforms = moved(transforms, shape, track.shifts * (shape[1] / full[1], shape[0] / full[0]))
    fft, workers = fft_of(transforms), fft_workers(transforms)
    images = _stacked(len(frames), lambda number: fft.irfft2(transforms[number], s=shape, **workers))
    return _Motion(*align_patches(images, track, full, n_patches, bfactor))


def _stacked(count: int, make: Callable[[int], Array]) -> Array:
    """Arrays `make(0)`, `make(1)`, ... as one, without holding them twice."""
    first = make(0)
    stack = xp_of(first).empty((count, *first.shape), dtype=first.dtype)
    stack[0] = first
    for number in range(1, count):
        stack[number] = make(number)
    return stack


def _write_sums(frames: MovieFrames, motion: _Motion, item: Item, options: Options, root: str) -> dict[str, str]:
    """Sum the frames and write what was asked for; column -> file."""
    sizes, pixel_size = binning(frames.shape, options.bin_factor), item.pixel_size * options.bin_factor
    count, shifts = len(frames), motion.track.shifts
    sums: dict[str, tuple[str, FrameSum]] = {}
    if options.dose_weighting:
        exposure = Exposure(pixel_size, float(item.optics["rlnVoltage"]), options.dose_per_frame, options.preexposure)
        sums["rlnMicrographName"] = (f"{root}.mrc", FrameSum(sizes, count, shifts, motion.model, exposure))
        if options.save_noDW:
            sums["rlnMicrographNameNoDW"] = (f"{root}_noDW.mrc", FrameSum(sizes, count, shifts, motion.model))
    else:
        sums["rlnMicrographName"] = (f"{root}.mrc", FrameSum(sizes, count, shifts, motion.model))
    spectrum = SpectrumSum(sizes, shifts, options.grouping_for_ps) if options.grouping_for_ps > 0 else None
    for number in range(count):
        ft = binned_transform(to_device(frames.corrected(number), worker_device()), sizes)
        for _, total in sums.values():
            total.add(number, ft)
        if spectrum is not None:
            spectrum.add(number, ft)
    for path, total in sums.values():
        mrc.write_stack(path, to_host(total.finish()), pixel_size)
    written = {column: path for column, (path, _) in sums.items()}
    if spectrum is not None:
        image, spectrum_pixel = spectrum.finish(pixel_size, options.ps_size)
        written["rlnCtfPowerSpectrum"] = f"{root}_PS.mrc"
        mrc.write_stack(written["rlnCtfPowerSpectrum"], to_host(image), spectrum_pixel)
    return written


def _general(frames: MovieFrames, item: Item, options: Options) -> Row:
    """The block general of the movie's STAR file."""
    general: Row = {
        "rlnImageSizeX": frames.shape[1],
        "rlnImageSizeY": frames.shape[0],
        "rlnImageSizeZ": len(frames),
        "rlnMicrographMovieName": project_path(item.path),
    }
    if options.gainref:
        is_turned = options.gain_rot or options.gain_flip
        general["rlnMicrographGainName"] = project_path(_turned_gain(options) if is_turned else options.gainref)
    if options.defect_file:
        general["rlnMicrographDefectFile"] = project_path(options.defect_file)
    general |= {
        "rlnMicrographBinning": options.bin_factor,
        "rlnMicrographOriginalPixelSize": item.pixel_size,
    }
    if options.dose_per_frame > 0:
        general |= {
            "rlnMicrographDoseRate": options.dose_per_frame,
            "rlnMicrographPreExposure": options.preexposure,
        }
    general["rlnVoltage"] = float(item.optics["rlnVoltage"])
    if item.path.suffix.lower() in EER_SUFFIXES:
        general |= {"rlnEERUpsampling": options.eer_upsampling, "rlnEERGrouping": options.eer_grouping}
    return general


def _accumulated(track: Track, item: Item, options: Options) -> Row:
    """Lengths of the path of the whole field, in Å: all of it, and before and after an exposure of 4 e/Å^2."""
    steps = np.hypot(*np.diff(track.shifts, axis=0).T) * item.pixel_size
    dose = options.dose_per_frame if options.dose_per_frame > 0 else 1.0
    early = options.preexposure + dose * np.arange(2, len(track.shifts) + 1) <= _EARLY_DOSE
    return {
        "rlnAccumMotionTotal": float(steps.sum()),
        "rlnAccumMotionEarly": float(steps[early].sum()),
        "rlnAccumMotionLate": float(steps[~early].sum()),
    }


def _picture(frames: MovieFrames, motion: _Motion, item: Item, options: Options) -> motion_plots.MotionPicture:
    pixel_size, track, patches = item.pixel_size, motion.track, motion.patches
    dose: NDArray[np.float64] | None = None
    if options.dose_per_frame > 0:
        dose = options.preexposure + options.dose_per_frame * np.arange(1.0, len(frames) + 1)
    length = float(np.hypot(*np.diff(track.shifts, axis=0).T).sum()) * pixel_size
    return motion_plots.MotionPicture(
        title=f"{item.path.name}: {length:.1f} Å over {len(frames)} frames",
        field=(frames.shape[1] * pixel_size, frames.shape[0] * pixel_size),
        dose=dose,
        track=-track.shifts * pixel_size,
        errors=track.errors * pixel_size,
        centres=None if patches is None else patches.centres * pixel_size,
        measured=None if patches is None else -patches.measured * pixel_size,
        fitted=None if patches is None else -patches.fitted * pixel_size,
        found=track.found,
    )

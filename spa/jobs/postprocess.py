"""Resolution, sharpening and filtering of a map from two half maps and a mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa.errors import InputError
from spa.fourier import forward
from spa.fsc import (
    FSC_THRESHOLD,
    CorrectedFsc,
    corrected_fsc,
    doubts,
    phase_randomise,
    resolution_shell,
    shell_to_resolution,
)
from spa.io import locres_plots, mrc, plots, star
from spa.io.emdb import write_fsc_xml
from spa.io.files import project_path
from spa.io.postprocess_output import ORIGIN_RESOLUTION, fsc_figure, fsc_table, guinier_figure, guinier_table
from spa.job import Job
from spa.kernels.backend import Array, to_device, to_host, xp_of
from spa.local_resolution import (
    Sampling,
    corrected_curves,
    filter_gains,
    local_filter,
    local_shells,
    resolution_map,
    sampling,
    window_curves,
)
from spa.options import CommonOptions, UsageError, option
from spa.sharpen import Mtf, Sharpened, detector_mtf, sharpen

_SAME_MAP = 0.999
_MASKED_FRACTION = 0.1
_STRAIGHT = 0.8  # squared correlation of the Guinier fit


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of `spa postprocess`, named as in relion_postprocess."""

    i: str = option(help="First unfiltered half map, e.g. run_half1_class001_unfil.mrc", role="input")
    i2: str | None = option(None, help="Second half map", role="input", default_text="named like --i")
    o: str = option("postprocess", help="Rootname of the output", role="rootname")
    mask: str | None = option(None, help="Soft mask, 0 to 1", role="input")
    angpix: float = option(-1.0, help="Pixel size", unit="Å", default_text="the maps' headers")
    mtf: str | None = option(None, help="STAR file: MTF of the detector", role="input", group="Sharpening")
    mtf_angpix: float = option(
        -1.0, help="Pixel size of the detector", unit="Å", group="Sharpening", default_text="that of the maps"
    )
    auto_bfac: bool = option(False, help="Fit the B-factor to the Guinier plot", group="Sharpening")
    autob_lowres: float = option(10.0, help="Fit from here", unit="Å", bounds=(0.1, None), group="Sharpening")
    autob_highres: float = option(
        0.0,
        help="Fit to here; 0 for as far as the FSC weights are positive",
        unit="Å",
        bounds=(0, None),
        group="Sharpening",
    )
    adhoc_bfac: float = option(0.0, help="B-factor, negative sharpens", unit="Å^2", group="Sharpening")
    skip_fsc_weighting: bool = option(False, help="No weights sqrt(2 FSC / (1 + FSC))", group="Filtering")
    low_pass: float = option(
        -1.0,
        help="Low-pass filter; 0 for none, negative for the resolution at FSC = 0.143",
        unit="Å",
        group="Filtering",
    )
    randomize_at_fsc: float = option(
        0.8,
        help="Randomise phases from where the unmasked FSC falls below this",
        bounds=(0.143, 0.999),
        group="Filtering",
    )

    locres: bool = option(False, help="Local resolution and a map filtered with it", group="Local resolution")
    locres_sampling: float = option(
        25.0, help="Step of the grid of points", unit="Å", bounds=(0.1, None), group="Local resolution"
    )
    locres_maskrad: float = option(
        -1.0,
        help="Radius of the window around a point",
        unit="Å",
        group="Local resolution",
        default_text="half the step",
    )
    locres_edgwidth: float = option(
        -1.0, help="Width of the window's soft edge", unit="Å", group="Local resolution", default_text="the step"
    )
    locres_randomize_at: float = option(
        25.0, help="Randomise phases beyond this", unit="Å", bounds=(0.1, None), group="Local resolution"
    )
    locres_minres: float = option(
        50.0, help="Lowest resolution, also where there is none", unit="Å", bounds=(0.1, None), group="Local resolution"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auto_bfac and self.adhoc_bfac != 0:
            raise UsageError("--auto_bfac and --adhoc_bfac: expected one of the two")


@dataclass(frozen=True)
class _Inputs:
    """Half maps and mask as read, their names and pixel size."""

    names: tuple[str, str]
    half1: Array
    half2: Array
    mask: Array | None
    pixel_size: float

    @property
    def box(self) -> int:
        return int(self.half1.shape[0])


def run(options: Options, job: Job) -> None:
    """FSC, resolution, sharpening; then the files."""
    inputs = _read(options, job)
    where = _sampling(options, inputs) if options.locres else None
    mtf = _read_mtf(options, inputs.pixel_size)
    rng = np.random.default_rng(options.random_seed)
    curves = corrected_fsc(inputs.half1, inputs.half2, inputs.mask, options.randomize_at_fsc, rng)
    _judge_halves(curves, inputs, job)
    shell = resolution_shell(curves.final)
    resolution = shell_to_resolution(max(shell, 1), inputs.box, inputs.pixel_size)
    result = sharpen(
        (inputs.half1 + inputs.half2) / 2,
        inputs.pixel_size,
        fsc=None if options.skip_fsc_weighting else curves.final,
        mtf=mtf,
        bfactor=None if options.auto_bfac else options.adhoc_bfac,
        fit_range=(options.autob_lowres, options.autob_highres),
        low_pass_at=resolution if options.low_pass < 0 else options.low_pass,
    )
    _judge_bfactor(result, options, job)
    _write(result, curves, shell, inputs, options)
    found = f"{resolution:.2f} A" if shell else "none"
    job.say(f"final resolution {found} (FSC = {FSC_THRESHOLD}), B-factor {result.bfactor:.1f} A^2")
    if where is not None:
        sharpened = sharpen((inputs.half1 + inputs.half2) / 2, inputs.pixel_size, mtf=mtf, bfactor=result.bfactor)
        _local(where, sharpened.volume, resolution if shell else None, inputs, options, job)


def _read(options: Options, job: Job) -> _Inputs:
    name1, name2 = options.i, options.i2 or _other_half(options.i)
    half1, pixel_size = mrc.read_volume(name1, options.angpix)
    half2, pixel_size2 = mrc.read_volume(name2, options.angpix)
    box = len(half1)
    if len(half2) != box:
        raise InputError(f"{name2}: expected a box of {box} pixels as {name1} has, found {len(half2)}")
    _same_pixel(name1, pixel_size, name2, pixel_size2)
    mask = None
    if options.mask:
        mask, mask_pixel = mrc.read_volume(options.mask, options.angpix)
        if len(mask) != box:
            raise InputError(f"{options.mask}: expected the half maps' box of {box}, found {len(mask)}")
        _same_pixel(name1, pixel_size, options.mask, mask_pixel)
        _judge_mask(mask, options.mask, job)
    if options.i2 is None:
        job.add_input(name2)
    device = job.devices[0] if job.devices else None
    on_device = [None if a is None else to_device(a, device) for a in (half1, half2, mask)]
    return _Inputs((name1, name2), on_device[0], on_device[1], on_device[2], pixel_size)


def _other_half(name: str) -> str:
    """The other half map: the last half1 in the file's name becomes half2, or the other way round."""
    path = Path(name)
    found = re.search(r"(.*)half([12])(.*)", path.name)
    if found is None:
        raise InputError(f"{name}: no 'half1' or 'half2' in the name to find the other half by: give --i2")
    other = path.with_name(f"{found[1]}half{3 - int(found[2])}{found[3]}")
    if not other.exists():
        raise InputError(f"{other}: the other half of {name} is not there: give --i2")
    return str(other)


def _same_pixel(name1: str, pixel1: float, name2: str, pixel2: float) -> None:
    if abs(pixel2 / pixel1 - 1) > 1e-3:
        raise InputError(f"{name2}: expected {pixel1:g} A a pixel as in {name1}, found {pixel2:g} (--angpix overrules)")


def _judge_mask(mask: Array, name: str, job: Job) -> None:
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(f"{name}: expected mask values from 0 to 1, found {low:g} to {high:g}")
    if high < 0.5 or low > 0.5:
        raise InputError(f"{name}: expected 0 (solvent) to 1 (particle), found {low:g} to {high:g}")
    if not ((mask > 0.05) & (mask < 0.95)).any():
        job.warn(f"{name}: the mask has a hard edge, which correlates the half maps; give it a soft one")


def _read_mtf(options: Options, pixel_size: float) -> Mtf | None:
    if options.mtf is None:
        return None
    table = next(iter(star.read(options.mtf)), None)
    if table is None:
        raise InputError(f"{options.mtf}: expected a table of the MTF, found no block")
    size = options.mtf_angpix if options.mtf_angpix > 0 else pixel_size
    frequency, value = table.floats("rlnResolutionInversePixel"), table.floats("rlnMtfValue")
    try:
        return detector_mtf(frequency, value, size)
    except InputError as error:
        raise InputError(f"{options.mtf}: {error}") from None


def _judge_halves(curves: CorrectedFsc, inputs: _Inputs, job: Job) -> None:
    """Refuse a map compared with itself; say what speaks against the resolution."""
    lowest = float(curves.unmasked[1:].min())
    if lowest > _SAME_MAP:
        raise InputError(
            f"{inputs.names[1]}: the same map as {inputs.names[0]} (FSC at least {lowest:.4f} everywhere): "
            "expected two half maps refined apart from each other"
        )
    if inputs.mask is None:
        job.warn("no --mask: the solvent in the box lowers the FSC")
    if float((inputs.half1 == 0).mean()) > _MASKED_FRACTION:
        job.warn(f"{inputs.names[0]}: already masked (many voxels are 0): no FSC is free of that mask")
    if curves.randomise_from is not None:
        start = shell_to_resolution(curves.randomise_from, inputs.box, inputs.pixel_size)
        job.say(f"phases randomised beyond {start:.2f} A")
    for doubt in doubts(curves, inputs.pixel_size):
        job.warn(doubt)


def _judge_bfactor(result: Sharpened, options: Options, job: Job) -> None:
    if options.auto_bfac and result.fit is None:
        high = f"{options.autob_highres:g} A" if options.autob_highres else "the last with signal"
        job.warn(f"too few shells from {options.autob_lowres:g} A to {high} for a B-factor: not sharpened")
    elif result.fit is not None:
        job.say(
            f"Guinier fit: slope {result.fit.slope:.2f}, intercept {result.fit.intercept:.2f}, "
            f"squared correlation {result.fit.correlation:.3f}"
        )
        if result.fit.correlation < _STRAIGHT:
            job.warn("the Guinier plot is not straight over the fit: the B-factor is uncertain; try --autob_highres")
    if result.bfactor > 0:
        job.warn(f"a positive B-factor of {result.bfactor:.1f} A^2 dampens the map instead of sharpening it")


def _sampling(options: Options, inputs: _Inputs) -> Sampling:
    """The grid and window of the local resolution, checked against the box."""
    step, pixel_size = options.locres_sampling, inputs.pixel_size
    radius = options.locres_maskrad if options.locres_maskrad >= 0 else step / 2
    edge = options.locres_edgwidth if options.locres_edgwidth >= 0 else step
    for flag, value in (("minres", options.locres_minres), ("randomize_at", options.locres_randomize_at)):
        if value <= 2 * pixel_size:
            raise InputError(f"--locres_{flag} {value:g}: expected more than two pixels, {2 * pixel_size:g} A")
    if radius + edge < pixel_size:
        raise InputError(
            f"--locres_maskrad {radius:g}, --locres_edgwidth {edge:g}: expected more than a pixel together"
        )
    try:
        return sampling(inputs.box, step / pixel_size, radius / pixel_size, edge / pixel_size)
    except InputError as error:
        raise InputError(f"--locres_maskrad {radius:g}, --locres_edgwidth {edge:g}: {error}") from None


def _local(
    where: Sampling, sharpened: Array, resolution: float | None, inputs: _Inputs, options: Options, job: Job
) -> None:
    """Local resolution and locally filtered map: their files, and a line about them."""
    extent = inputs.box * inputs.pixel_size
    lowest = extent / options.locres_minres  # shells of the box
    curves = _local_curves(where, inputs, options, job)
    shells = local_shells(curves, where)
    local = extent / resolution_map(shells, where, lowest)
    gains = filter_gains(curves, shells, lowest / where.shell_width, not options.skip_fsc_weighting)
    transform, filtered = forward(sharpened, 3), xp_of(sharpened).zeros_like(sharpened)
    with job.progress(gains.shape[1], "local filter", "shells") as bar:
        for shell in range(gains.shape[1]):
            job.check_abort()
            local_filter(transform, gains, where, shell, filtered)
            bar.update()
    root, volume = _root(options), to_host(filtered)
    found = local < options.locres_minres * 0.999
    counted = found if inputs.mask is None else to_host(inputs.mask) > 0.5
    mrc.write_volume(f"{root}_locres.mrc", local, inputs.pixel_size)
    mrc.write_volume(f"{root}_locres_filtered.mrc", volume, inputs.pixel_size)
    figure = locres_plots.summary(volume, local, counted, options.locres_minres, inputs.pixel_size, resolution)
    plots.save(f"{root}_locres.png", figure)
    _tell_local(local, counted & found, counted, inputs, job)


def _local_curves(where: Sampling, inputs: _Inputs, options: Options, job: Job) -> Array:
    """Corrected FSC of each window."""
    start = max(1, int(inputs.box * inputs.pixel_size / options.locres_randomize_at))
    rng = np.random.default_rng(options.random_seed)
    pairs = [(inputs.half1, inputs.half2)]
    pairs.append((phase_randomise(inputs.half1, start, rng), phase_randomise(inputs.half2, start, rng)))
    parts: list[list[Array]] = [[], []]
    with job.progress(len(where), "local resolution", "points") as bar:
        for first in range(0, len(where), where.batch):
            job.check_abort()
            chosen = slice(first, min(first + where.batch, len(where)))
            for part, pair in zip(parts, pairs, strict=True):
                part.append(window_curves(*pair, where, chosen))
            bar.update(chosen.stop - chosen.start)
    plain, randomised = (np.concatenate(part) for part in parts)
    return corrected_curves(plain, randomised, start, where)


def _tell_local(local: Array, found: Array, counted: Array, inputs: _Inputs, job: Job) -> None:
    place = "the volume" if inputs.mask is None else "the mask"
    if not found.any():
        job.warn(f"no local resolution anywhere in {place}: no window holds correlated signal")
        return
    low, median, high = np.percentile(local[found], [5, 50, 95])
    text = f"local resolution: median {median:.2f} A, nine tenths from {low:.2f} to {high:.2f} A"
    if inputs.mask is None:
        job.say(f"{text}, in {100 * found.mean():.0f} % of the box (no --mask)")
    else:
        job.say(f"{text}, in {100 * found.sum() / counted.sum():.0f} % of the mask")


def _root(options: Options) -> str:
    folder = options.o.endswith("/") or Path(options.o).is_dir()
    return str(Path(options.o) / "postprocess") if folder else options.o


def _write(result: Sharpened, curves: CorrectedFsc, shell: int, inputs: _Inputs, options: Options) -> None:
    root = _root(options)
    box, pixel_size = inputs.box, inputs.pixel_size
    volume, mask = to_host(result.volume), None
    mrc.write_volume(f"{root}.mrc", volume, pixel_size)
    if inputs.mask is not None:
        mask = to_host(inputs.mask)
        mrc.write_volume(f"{root}_masked.mrc", volume * mask, pixel_size)
    general = _general(result, curves, shell, inputs, options)
    star.write(f"{root}.star", star.StarFile([general, fsc_table(curves, box, pixel_size), guinier_table(result)]))
    title = "unmasked FSC" if curves.final is curves.unmasked else "masked-corrected FSC"
    write_fsc_xml(f"{root}_fsc.xml", curves.final, box, pixel_size, title)
    plots.save(f"{root}_fsc.png", fsc_figure(curves, shell, box, pixel_size))
    plots.save(f"{root}_guinier.png", guinier_figure(result, (options.autob_lowres, options.autob_highres)))
    shown = {"half-map average": to_host(inputs.half1 + inputs.half2) / 2, "postprocessed": volume}
    plots.save(f"{root}_slices.png", plots.slices(shown, pixel_size, contour=mask))


def _general(result: Sharpened, curves: CorrectedFsc, shell: int, inputs: _Inputs, options: Options) -> star.Block:
    resolution = shell_to_resolution(shell, inputs.box, inputs.pixel_size) if shell else ORIGIN_RESOLUTION
    values: dict[str, float | str] = {
        "rlnFinalResolution": resolution,
        "rlnBfactorUsedForSharpening": result.bfactor,
        "rlnUnfilteredMapHalf1": project_path(inputs.names[0]),
        "rlnUnfilteredMapHalf2": project_path(inputs.names[1]),
    }
    if options.mask:
        values["rlnMaskName"] = project_path(options.mask)
    if curves.randomise_from is not None:
        values["rlnRandomiseFrom"] = shell_to_resolution(curves.randomise_from, inputs.box, inputs.pixel_size)
    if result.fit is not None:
        values["rlnFittedSlopeGuinierPlot"] = result.fit.slope
        values["rlnFittedInterceptGuinierPlot"] = result.fit.intercept
        values["rlnCorrelationFitGuinierPlot"] = result.fit.correlation
    return star.Block.pairs("general", values)

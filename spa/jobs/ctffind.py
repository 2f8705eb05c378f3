"""Estimate the CTF of micrographs, with pictures and columns that say whether to believe it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

import spa
from spa.ctf_estimation import CtfEstimate, Settings, estimate, estimate_micrograph
from spa.ctf_estimation_confidence import DOUBTFUL, confidence, problems, uneven_part
from spa.ctf_estimation_model import Wave
from spa.ctf_estimation_rings import diagnostic
from spa.ctf_estimation_spectrum import Spectrum, Tiles, from_image
from spa.ctf_estimation_tilt import tilt
from spa.errors import InputError
from spa.io import ctf_plots, mrc, plots
from spa.io.files import project_path, write_text
from spa.io.micrograph_image import read_micrograph
from spa.job import Job
from spa.kernels.backend import to_device, to_host
from spa.map_job import Item, MicrographOptions, Row, map_micrographs, worker_device
from spa.options import UsageError, option

OUTPUT = "micrographs_ctf.star"
PICTURE = "micrographs_ctf.png"
_CTF = "CTF"
_PER_PIXEL, _PER_BOX, _PROCESS = 16, 60, 320 << 20  # bytes, measured: of an image, of a spectrum, of the rest
_COLUMNS = (
    "#1 - micrograph number; #2 - defocus 1 [Angstroms]; #3 - defocus 2; #4 - azimuth of astigmatism; "
    "#5 - additional phase shift [radians]; #6 - cross correlation; "
    "#7 - spacing (in Angstroms) up to which CTF rings were fit successfully"
)
_LINES = (
    "#1 - spatial frequency (1/Angstroms); #2 - 1D rotational average of spectrum (assuming no astigmatism); "
    "#3 - 1D rotational average of spectrum; #4 - CTF fit; #5 - cross-correlation between spectrum and CTF fit; "
    "#6 - 2sigma of expected cross correlation of noise"
)

_OWNED = (
    "rlnCtfImage",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnCtfAstigmatism",
    "rlnDefocusAngle",
    "rlnCtfFigureOfMerit",
    "rlnCtfMaxResolution",
    "rlnPhaseShift",
    "spaCtfTrusted",
    "spaCtfConfidence",
    "spaCtfProblems",
    "spaDefocusError",
    "spaPhaseShiftError",
    "spaIceRing",
    "spaDrift",
    "spaTiltAngle",
    "spaTiltAxis",
)
_ADVICE = {
    "rings_do_not_fit": "if there is a phase plate, give --do_phaseshift; else check pixel size and voltage",
    "phase_shift_left_out": "give --do_phaseshift",
    "wrong_voltage_or_cs": "check voltage, spherical aberration and pixel size",
    "phase_shift_uncertain": "its standard deviation is more than 1.5 degrees (spaPhaseShiftError)",
    "defocus_at_limit": "give a wider range with --dFMin and --dFMax",
}


@dataclass(frozen=True, kw_only=True)
class Options(MicrographOptions):
    """Options of `spa ctffind`, named as in relion_run_ctffind."""

    i: str = option(help="STAR file of the micrographs", role="input")
    o: str = option("CtfFind", help="Output folder", role="folder")
    use_noDW: bool = option(False, help="Take the micrographs without dose weighting (rlnMicrographNameNoDW)")
    use_given_ps: bool = option(
        False, help="Take the power spectra of the motion correction (rlnCtfPowerSpectrum), not the micrographs"
    )
    box: int = option(512, help="Box of the spectra, even", unit="px", bounds=(64, 8192), flag="--Box", group=_CTF)
    res_min: float = option(
        30.0, help="Lowest resolution of the fit", unit="Å", bounds=(1, 1000), flag="--ResMin", group=_CTF
    )
    res_max: float = option(
        4.0,
        help="Highest resolution of the fit; what is too weak there does no harm",
        unit="Å",
        bounds=(0.5, 1000),
        flag="--ResMax",
        group=_CTF,
    )
    defocus_min: float = option(
        3000.0, help="Smallest defocus to look for", unit="Å", bounds=(100, 1e6), flag="--dFMin", group=_CTF
    )
    defocus_max: float = option(
        60000.0, help="Largest defocus to look for", unit="Å", bounds=(100, 1e6), flag="--dFMax", group=_CTF
    )
    defocus_step: float = option(
        500.0,
        help="Largest step of the search; it is made as fine as the resolution needs",
        unit="Å",
        bounds=(1, 1e5),
        flag="--FStep",
        group=_CTF,
    )
    astigmatism: float = option(
        500.0,
        help="Astigmatism to expect, which counts where the rings leave it open; "
        "the search reaches twice that, and 1000 at least",
        unit="Å",
        bounds=(10, 1e5),
        flag="--dAst",
        group=_CTF,
    )
    tilt: bool = option(False, help="Fit the tilt of the specimen as well", group=_CTF)
    do_phaseshift: bool = option(False, help="Fit the phase shift of a phase plate", group="Phase shift")
    phase_min: float = option(
        0.0, help="Smallest phase shift to look for", unit="degrees", bounds=(0, 180), group="Phase shift"
    )
    phase_max: float = option(
        180.0, help="Largest phase shift to look for", unit="degrees", bounds=(0, 180), group="Phase shift"
    )
    phase_step: float = option(10.0, help="Step of the search", unit="degrees", bounds=(0.5, 90), group="Phase shift")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box % 2:
            raise UsageError(f"--Box {self.box}: expected an even number")
        if self.defocus_min >= self.defocus_max:
            raise UsageError(f"--dFMin {self.defocus_min:g}: expected less than --dFMax {self.defocus_max:g}")
        if self.res_min <= self.res_max:
            raise UsageError(f"--ResMin {self.res_min:g}: expected more than --ResMax {self.res_max:g} Å")
        if self.do_phaseshift and self.phase_min > self.phase_max:
            raise UsageError(f"--phase_min {self.phase_min:g}: expected at most --phase_max {self.phase_max:g}")
        if self.use_noDW and self.use_given_ps:
            raise UsageError("--use_noDW and --use_given_ps: expected one of the two")
        if self.tilt and self.use_given_ps:
            raise UsageError("--tilt: expected without --use_given_ps, since it needs the micrograph")

    @property
    def settings(self) -> Settings:
        """What the estimation takes from the options."""
        phases = (self.phase_min, self.phase_max, self.phase_step) if self.do_phaseshift else None
        return Settings(
            resolution_min=self.res_min,
            resolution_max=self.res_max,
            defocus_min=self.defocus_min,
            defocus_max=self.defocus_max,
            defocus_step=self.defocus_step,
            astigmatism=self.astigmatism,
            phases=phases,
        )


def run(options: Options, job: Job) -> None:
    """Estimate the CTF of every micrograph, write the table, draw the set, and name what is not to be trusted."""
    column = "rlnMicrographName"
    if options.use_given_ps:
        column = "rlnCtfPowerSpectrum"
    elif options.use_noDW:
        column = "rlnMicrographNameNoDW"
    table = map_micrographs(
        job,
        options,
        process,
        block="micrographs",
        column=column,
        named_after="rlnMicrographName",
        output=OUTPUT,
        memory=partial(_memory, options),
        owns=_OWNED,
    )
    trusted = table.integers("spaCtfTrusted") == 1
    reasons = table.text("spaCtfProblems")
    for name, good, reason in zip(table.text(column), trusted.tolist(), reasons, strict=True):
        if not good:
            job.warn(f"{name}: its CTF is not to be trusted: {_told(reason)}")
    mean = (table.floats("rlnDefocusU") + table.floats("rlnDefocusV")) / 2
    resolution = table.floats("rlnCtfMaxResolution")
    shown = ctf_plots.Overview(mean, table.floats("rlnCtfAstigmatism"), resolution, trusted)
    picture = plots.save(Path(options.o) / PICTURE, ctf_plots.overview(shown))
    if trusted.any():
        job.say(
            f"{trusted.sum()} of {len(trusted)} trusted: defocus {mean[trusted].min():.0f} to "
            f"{mean[trusted].max():.0f} Å, rings seen to {np.median(resolution[trusted]):.2f} Å (median)"
        )
    job.say(f"wrote {picture}")


def _told(reason: str) -> str:
    """The words of a spaCtfProblems with what to do about them."""
    words = reason.split(",")
    advice = "".join(f"; {_ADVICE[word]}" for word in words if word in _ADVICE)
    return ", ".join(word.replace("_", " ") for word in words) + advice


def process(item: Item, options: Options) -> Row:
    """Estimate the CTF of one micrograph and write its files; returns its columns."""
    wave = Wave.of(
        *(float(item.optics[f"rln{name}"]) for name in ("Voltage", "SphericalAberration", "AmplitudeContrast"))
    )
    tiles: Tiles | None = None
    uneven = 0.0
    try:
        if options.use_given_ps:
            found = estimate(_given_spectrum(item), wave, options.settings)
        else:
            image = to_device(read_micrograph(item.path), worker_device())
            uneven = uneven_part(image)
            found, tiles = estimate_micrograph(image, item.pixel_size, options.box, wave, options.settings)
    except ValueError as error:
        raise InputError(f"{item.path}: {error}") from None
    tilted: Row = {}
    if options.tilt and tiles is not None:
        plane = tilt(tiles, wave, found.parameters, found.whole, found.highest, found.averages / tiles.kept.sum())
        tilted = {"spaTiltAngle": plane.angle, "spaTiltAxis": plane.axis}
        found = replace(found, defocus_u=found.defocus_u + plane.offset, defocus_v=found.defocus_v + plane.offset)
    against = problems(found, uneven)
    _write_files(item, options, found, against)
    return _row(item, options, found, against) | tilted


def _memory(options: Options, item: Item) -> int:
    """Bytes that a micrograph takes, from its header."""
    pixels = math.prod(mrc.info(item.path).shape)
    if options.use_given_ps:
        return _PROCESS + _PER_BOX * pixels
    return _PROCESS + _PER_BOX * options.box**2 + _PER_PIXEL * pixels


def _given_spectrum(item: Item) -> Spectrum:
    image, pixel_size = mrc.read(item.path)
    if len(image) != 1 or not np.isfinite(image).all() or image.min() < 0:
        raise InputError(f"{item.path}: expected the amplitudes of one spectrum, finite and not negative")
    return from_image(to_device(image[0], worker_device()), pixel_size if pixel_size > 0 else item.pixel_size)


def _row(item: Item, options: Options, found: CtfEstimate, against: list[str]) -> Row:
    row: Row = {
        "rlnCtfImage": f"{project_path(_file(item, options, '.ctf'))}:mrc",
        "rlnDefocusU": found.defocus_u,
        "rlnDefocusV": found.defocus_v,
        "rlnCtfAstigmatism": found.astigmatism,
        "rlnDefocusAngle": found.defocus_angle,
        "rlnCtfFigureOfMerit": found.figure_of_merit,
        "rlnCtfMaxResolution": found.rings.max_resolution,
    }
    if options.do_phaseshift:
        row |= {"rlnPhaseShift": found.phase_shift, "spaPhaseShiftError": found.phase_error}
    return row | {
        "spaCtfTrusted": int(not against),
        "spaCtfConfidence": min(confidence(found), DOUBTFUL if against else 1.0),
        "spaCtfProblems": ",".join(against) or "none",
        "spaDefocusError": found.defocus_error,
        "spaIceRing": found.ice_ring,
        "spaDrift": found.drift,
    }


def _file(item: Item, options: Options, suffix: str) -> Path:
    return Path(options.o) / f"{item.stem}{suffix}"


def _write_files(item: Item, options: Options, found: CtfEstimate, against: list[str]) -> None:
    picture = diagnostic(found.whole)
    spectrum = found.whole.spectrum
    pixel_size = spectrum.extent / spectrum.box_size
    mrc.write_stack(_file(item, options, ".ctf"), picture, pixel_size)
    write_text(_file(item, options, ".txt"), _header(item, options, spectrum, _COLUMNS, "Columns: ") + _result(found))
    curves = found.rings
    lines = (curves.frequency, curves.rotational, curves.along, curves.fit, curves.correlation, curves.noise)
    text = "".join(" ".join(f"{value:.6g}" for value in to_host(line)) + "\n" for line in lines)
    write_text(
        _file(item, options, "_avrot.txt"), _header(item, options, spectrum, _LINES, "6 lines per micrograph: ") + text
    )
    plots.save(
        _file(item, options, "_ctf.png"), ctf_plots.ring_plot(found, picture, found.highest, item.path.name, against)
    )


def _header(item: Item, options: Options, spectrum: Spectrum, last: str, kind: str) -> str:
    """The comment lines of CTFFIND's text files."""
    optics = item.optics
    return (
        f"# Output from CTFFind version spa {spa.__version__}\n"
        f"# Input file: {item.path} ; Number of micrographs: 1\n"
        f"# Pixel size: {spectrum.extent / spectrum.box_size:.3f} Angstroms ; "
        f"acceleration voltage: {float(optics['rlnVoltage']):.1f} keV ; "
        f"spherical aberration: {float(optics['rlnSphericalAberration']):.2f} mm ; "
        f"amplitude contrast: {float(optics['rlnAmplitudeContrast']):.2f}\n"
        f"# Box size: {spectrum.box_size} pixels ; min. res.: {options.res_min:.1f} Angstroms ; "
        f"max. res.: {options.res_max:.1f} Angstroms ; min. def.: {options.defocus_min:.1f} um; "
        f"max. def. {options.defocus_max:.1f} um\n"
        f"# {kind}{last}\n"
    )


def _result(found: CtfEstimate) -> str:
    values = (
        1.0,
        found.defocus_u,
        found.defocus_v,
        found.defocus_angle,
        np.radians(found.phase_shift),
        found.figure_of_merit,
        found.rings.max_resolution,
    )
    return " ".join(f"{value:.6f}" for value in values) + "\n"

"""Tables and figures that say how a map was post-processed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from spa.fsc import FSC_THRESHOLD, CorrectedFsc, shell_to_resolution
from spa.io import plots, star
from spa.kernels.backend import Array
from spa.sharpen import Sharpened

ORIGIN_RESOLUTION = 999.0
"""RELION's resolution, in Å, of the shell at the origin."""


def fsc_table(curves: CorrectedFsc, box: int, pixel_size: float) -> star.Block:
    """The table `fsc` of postprocess.star: the curves shell by shell."""
    shells = np.arange(len(curves.final))
    resolution = np.full(len(shells), ORIGIN_RESOLUTION)
    resolution[1:] = box * pixel_size / shells[1:]
    columns: dict[str, Array] = {"rlnSpectralIndex": shells, "rlnResolution": 1 / resolution}
    columns["rlnAngstromResolution"] = resolution
    if curves.masked is not None:
        columns["rlnFourierShellCorrelationCorrected"] = curves.final
    columns["rlnFourierShellCorrelationUnmaskedMaps"] = curves.unmasked
    if curves.masked is not None:
        columns["rlnFourierShellCorrelationMaskedMaps"] = curves.masked
    if curves.randomised is not None:
        columns["rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"] = curves.randomised
    return star.Block.table("fsc", columns)


def guinier_table(result: Sharpened) -> star.Block:
    """The table `guinier` of postprocess.star: ln of the amplitudes after each step."""
    plot = result.guinier
    steps = {
        "rlnLogAmplitudesOriginal": plot.original,
        "rlnLogAmplitudesMTFCorrected": plot.mtf_corrected,
        "rlnLogAmplitudesWeighted": plot.weighted,
        "rlnLogAmplitudesSharpened": plot.sharpened,
    }
    columns = {"rlnResolutionSquared": plot.inverse_d2} | {k: v for k, v in steps.items() if v is not None}
    if result.fit is not None:
        columns["rlnLogAmplitudesIntercept"] = np.full(len(plot.inverse_d2), result.fit.intercept)
    return star.Block.table("guinier", columns)


def fsc_figure(curves: CorrectedFsc, shell: int, box: int, pixel_size: float) -> Figure:
    """The FSC curves with the resolution, that of `shell`, marked."""
    lines = {"unmasked": curves.unmasked}
    if curves.masked is not None:
        lines["masked"] = curves.masked
    if curves.randomised is not None:
        lines["phase-randomised, masked"] = curves.randomised
        lines["corrected"] = curves.corrected
    resolution = shell_to_resolution(shell, box, pixel_size)
    title = f"Final resolution {resolution:.2f} Å" if shell else "No resolution"
    return plots.fsc(lines, box, pixel_size, shell, FSC_THRESHOLD, curves.randomise_from, title)


def guinier_figure(result: Sharpened, fit_range: tuple[float, float]) -> Figure:
    """The Guinier plot with the line fitted between two resolutions in Å."""
    plot = result.guinier
    steps = {
        "original": plot.original,
        "MTF corrected": plot.mtf_corrected,
        "FSC weighted": plot.weighted,
        "sharpened": plot.sharpened,
    }
    lines = {label: values for label, values in steps.items() if values is not None}
    fit = (result.fit.slope, result.fit.intercept) if result.fit else None
    return plots.guinier(plot.inverse_d2, lines, fit, fit_range, result.bfactor)

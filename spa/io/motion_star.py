"""The STAR file of one movie's motion, as RELION writes it beside each corrected micrograph."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from spa.io import star

NO_MODEL, THIRD_ORDER_POLYNOMIAL = 0, 1
"""RELION's rlnMotionModelVersion."""

Floats = NDArray[np.float64]


def write_motion(
    path: str | os.PathLike[str],
    general: Mapping[str, str | int | float],
    shifts: Floats,
    coefficients: Floats | None,
    hot: NDArray[np.bool_],
    local: tuple[Floats, Floats] | None,
) -> None:
    """Write the blocks general, global_shift, local_motion_model, hot_pixels and local_shift.

    Parameters
    ----------
    general : columns of the block general; the versions of the model and the start frame are added.
    shifts : (n_frames, 2), corrections of whole frames, pixels of the unbinned frame.
    coefficients : (2, 18) of the local model, or None.
    hot : hot pixels, (rows, columns).
    local : centres (n_patches, 2) and measured corrections (n_patches, n_frames, 2) of patches, or None.
    """
    version = NO_MODEL if coefficients is None else THIRD_ORDER_POLYNOMIAL
    blocks = [
        star.Block.pairs("general", {**general, "rlnMicrographStartFrame": 1, "rlnMotionModelVersion": version}),
        star.Block.table(
            "global_shift",
            {
                "rlnMicrographFrameNumber": np.arange(1, len(shifts) + 1),
                "rlnMicrographShiftX": shifts[:, 0],
                "rlnMicrographShiftY": shifts[:, 1],
            },
        ),
    ]
    if coefficients is not None:
        flat = coefficients.ravel()
        columns = {"rlnMotionModelCoeffsIdx": np.arange(len(flat)), "rlnMotionModelCoeff": flat}
        blocks.append(star.Block.table("local_motion_model", columns))
    rows, columns_hot = np.nonzero(hot)
    if len(rows):
        places = {"rlnCoordinateX": columns_hot.astype(float), "rlnCoordinateY": rows.astype(float)}
        blocks.append(star.Block.table("hot_pixels", places))
    if local is not None:
        blocks.append(_local_shifts(*local))
    star.write(path, star.StarFile(blocks))


def _local_shifts(centres: Floats, measured: Floats) -> star.Block:
    n_patches, n_frames, _ = measured.shape
    return star.Block.table(
        "local_shift",
        {
            "rlnMicrographFrameNumber": np.tile(np.arange(1, n_frames + 1), n_patches),
            "rlnCoordinateX": np.repeat(centres[:, 0], n_frames),
            "rlnCoordinateY": np.repeat(centres[:, 1], n_frames),
            "rlnMicrographShiftX": measured[..., 0].ravel(),
            "rlnMicrographShiftY": measured[..., 1].ravel(),
        },
    )

"""The FSC curve in the XML form that the Electron Microscopy Data Bank takes."""

from __future__ import annotations

import os
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from spa.io.files import write_text


def write_fsc_xml(
    path: str | os.PathLike[str], curve: NDArray[np.float64], box: int, pixel_size: float, title: str
) -> None:
    """Write an FSC curve, one value per Fourier shell of `box` pixels of `pixel_size` Å.

    The file appears whole or not at all. Raises InputError if the file cannot be written.
    """
    lines = [f'<fsc title={quoteattr(title)} xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">']
    for shell, value in enumerate(curve):
        lines += [
            "  <coordinate>",
            f"    <x>{shell / (box * pixel_size):.6g}</x>",
            f"    <y>{value:.6g}</y>",
            "  </coordinate>",
        ]
    write_text(path, "\n".join([*lines, "</fsc>", ""]))

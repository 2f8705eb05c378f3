"""What the headers of movies and micrographs say, and whether the images of a set agree."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spa.errors import InputError
from spa.io import mrc
from spa.io.files import existing_file
from spa.io.tiff_pages import EER_SUFFIXES, TIFF_SUFFIXES, tiff_shape

TIFF_LIKE = (*TIFF_SUFFIXES, *EER_SUFFIXES, ".gain")


@dataclass(frozen=True)
class ImageHeader:
    """Rows and columns of an image or of the frames of a movie, in pixels.

    `n_frames` of an EER movie are those before grouping; `pixel_size` in Angstrom, 0 if the header has none or exactly
    1, which programs write that do not know it.
    """

    rows: int
    columns: int
    n_frames: int
    pixel_size: float

    @property
    def size(self) -> str:
        """Columns x rows, as microscopists say it."""
        return f"{self.columns} x {self.rows}"


def image_header(path: str | os.PathLike[str]) -> ImageHeader:
    """The header of a movie or micrograph: TIFF or EER by its suffix, else MRC.

    Raises
    ------
    InputError
        A file that is missing, empty, truncated or no image.
    """
    path = existing_file(path, "movie or micrograph")
    if path.suffix.lower() in TIFF_LIKE:
        n_frames, rows, columns = tiff_shape(path)
        return ImageHeader(rows, columns, n_frames, 0.0)
    found = mrc.info(path)
    return ImageHeader(
        found.shape[1], found.shape[2], found.shape[0], 0.0 if found.pixel_size == 1 else found.pixel_size
    )


def odd_ones(headers: Mapping[Path, ImageHeader]) -> dict[Path, str]:
    """The images that are not of the size most have, and what is wrong with each.

    Raises
    ------
    InputError
        If no size is that of more than half of the images, naming one of each.
    """
    sizes = Counter(header.size for header in headers.values())
    common, count = sizes.most_common(1)[0]
    if 2 * count <= len(headers) and len(sizes) > 1:
        first = {size: next(path for path, header in headers.items() if header.size == size) for size in sizes}
        examples = ", ".join(f"{sizes[size]} of {size} ({path})" for size, path in list(first.items())[:3])
        raise InputError(f"expected images of one size, found {examples}; import each size by itself")
    return {
        path: f"{path}: {header.size} pixels, expected {common} as the other {count}"
        for path, header in headers.items()
        if header.size != common
    }

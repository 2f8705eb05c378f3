"""The chain of pages of a TIFF or EER file, checked against the size of the file without reading a pixel."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from spa.errors import InputError
from spa.io.files import existing_file

TIFF_SUFFIXES = (".tif", ".tiff")
EER_SUFFIXES = (".eer", ".ecc")


def tiff_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Frames, rows and columns of a TIFF or EER movie, from its chain of pages: no pixel is read.

    Raises
    ------
    InputError
        A missing or truncated file, or pages that are no frames; of the pages only the first and the last are looked
        at, as an EER movie has a thousand.
    """
    path = existing_file(path, "movie or micrograph")
    file, pages = checked_pages(path, ends_only=True)
    with file:
        n_frames, problem = len(file.pages), ""
        if path.suffix.lower() in EER_SUFFIXES:
            # a first page that is compressed otherwise is the plain sum
            n_frames -= int(pages[0].compression != pages[-1].compression)
            problem = eer_problem(file, n_frames)
    if problem:
        raise InputError(f"{path}: {problem}")
    rows, columns = pages[-1].shape
    return n_frames, int(rows), int(columns)


def eer_problem(file: Any, count: int) -> str:
    """Whether the metadata of an open EER file speak of another number of frames than `count`, "" if not."""
    promised = (file.eer_metadata or {}).get("numberOfFrames")
    if promised is None or int(promised) == count:
        return ""
    return f"truncated: its header promises {promised} EER frames, found {count}"


def checked_pages(path: Path, ends_only: bool = False) -> tuple[Any, list[Any]]:
    """Open a TIFF and check that its chain of pages ends where it says and that all data lie in the file.

    tifffile gives what it finds of a truncated file without a word. With `ends_only` the first page and the last.
    """
    try:
        file = tifffile.TiffFile(path)
    except (tifffile.TiffFileError, OSError, ValueError, struct.error) as error:
        raise InputError(f"{path}: expected a TIFF, found something else: {error}") from error
    try:
        count = len(file.pages)
        chosen = sorted({0, count - 1}) if ends_only else range(count)
        pages = [file.pages[number].aspage() for number in chosen]
        problem = _page_problem(file, pages, count)
    except (tifffile.TiffFileError, OSError, ValueError, struct.error, IndexError) as error:
        problem = f"corrupt TIFF: {error}"
    if problem:
        file.close()
        raise InputError(f"{path}: {problem}")
    return file, pages


def _page_problem(file: Any, pages: list[Any], count: int) -> str:
    """What is wrong with the structure of a TIFF of `count` pages, "" if nothing; `pages` end with its last one."""
    if not pages:
        return "corrupt TIFF: no page"
    size = file.filehandle.size
    following = _next_page_offset(file, pages[-1])
    if following:
        return f"truncated: after page {count} the next one is promised at byte {following:,} of {size:,}"
    for page in pages:
        number = page.index + 1
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size:
            return f"truncated: the data of page {number} end at byte {max(ends, default=0):,} of {size:,}"
        if len(page.shape) != 2:
            return f"expected frames of grey values, found pages of shape {page.shape}"
    shapes = {page.shape for page in pages if page.compression == pages[-1].compression}
    if len(shapes) > 1:
        return f"expected frames of one size, found {' and '.join(str(shape) for shape in sorted(shapes))}"
    described = file.shaped_metadata
    if described and "shape" in described[0] and len(described) == 1:
        promised = int(np.prod(described[0]["shape"][:-2]))
        if promised != count:
            return f"truncated: its description promises {promised} frames, found {count}"
    return ""


def _next_page_offset(file: Any, page: Any) -> int:
    """Where the page says that the next one begins; 0 if it is the last."""
    layout, handle = file.tiff, file.filehandle
    handle.seek(page.offset)
    n_tags = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))[0]
    handle.seek(n_tags * layout.tagsize, os.SEEK_CUR)
    raw = handle.read(layout.offsetsize)
    if len(raw) < layout.offsetsize:
        return int(handle.size)
    return int(struct.unpack(layout.offsetformat, raw)[0])

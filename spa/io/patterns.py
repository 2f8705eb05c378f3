"""Files by name or pattern, and what kind of files they are."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spa.errors import InputError
from spa.io import mrc, star
from spa.io.coordinates import SUFFIXES
from spa.io.headers import TIFF_LIKE


def found_files(patterns: Sequence[str]) -> list[Path]:
    """The files that the names and patterns stand for, in natural order ("m2" before "m10"), each once.

    Raises
    ------
    InputError
        A pattern that no file matches, a folder, or no pattern at all.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [os.path.normpath(name) for name in names if os.path.isfile(name)]
        if not files and names:
            raise InputError(
                f"--i {pattern}: expected files, found a folder; give a pattern, as '{names[0]}/*{_suffix(names[0])}'"
            )
        if not files:
            raise InputError(f"--i {pattern}: no file matches")
        found |= dict.fromkeys(files)
    if not found:
        raise InputError("--i: expected files or a pattern")
    return [Path(name) for name in sorted(found, key=_natural)]


def _suffix(folder: str) -> str:
    """The suffix that most files of a folder have, as far as they have one."""
    suffixes = Counter(suffix for name in sorted(os.listdir(folder)) if (suffix := os.path.splitext(name)[1]))
    return suffixes.most_common(1)[0][0] if suffixes else ""


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def kind_of(paths: Sequence[Path]) -> str:
    """Movies, micrographs, coordinates or particles: by suffix and, where that does not say, by the first file.

    Raises
    ------
    InputError
        If that cannot be told.
    """
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".star"}:
        found = star.read(paths[0])
        columns = {column for block in found for column in block.columns}
        if "rlnImageName" in columns:
            return "particles"
        if "rlnCoordinateX" in columns:
            return "coordinates"
        raise InputError(f"{paths[0]}: expected particles or coordinates, found neither")
    if suffixes <= set(SUFFIXES):
        return "coordinates"
    if suffixes <= {*TIFF_LIKE, ".mrcs"}:
        return "movies"
    if suffixes == {".mrc"}:
        return "micrographs" if mrc.info(paths[0]).shape[0] == 1 else "movies"
    raise InputError(f"--i: files of the sorts {', '.join(sorted(suffixes))}: say what they are, as --do_movies")

"""Which micrograph a name means, where coordinates come from another folder, job or program than the micrographs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spa.errors import InputError
from spa.io.coordinates import SUFFIXES, micrograph_stem
from spa.io.files import project_path
from spa.io.headers import image_header

_MARKS = re.compile(
    r"(?:[-_.](?:DW|noDW|doseweighted|dose_weighted|patch|rigid|full|local|aligned|ali|sum|avg|corrected|corr|"
    r"motioncorrected|mc2?|denoised|frames|fractions|movie|EER|PS|bin\d*))+$",
    re.IGNORECASE,
)
_PIPELINE_FOLDER = re.compile(r"^[A-Za-z0-9]+/job\d{3,}/")


def of_micrographs(count: int, total: int) -> str:
    """Words for some of the micrographs, such as "2 of 3 micrographs"."""
    return f"{count} of {total} micrograph{'' if total == 1 else 's'}"


@dataclass
class Places:
    """Row of each name that means a micrograph, and the names that do so without their folder: (name, micrograph)."""

    rows: dict[str, int] = field(default_factory=dict)
    by_stem: list[tuple[str, str]] = field(default_factory=list)

    def told(self) -> str:
        """A line about the names that were found by their stem only, empty if there is none."""
        if not self.by_stem:
            return ""
        name, micrograph = self.by_stem[0]
        count = f"{len(self.by_stem)} micrograph{'s' if len(self.by_stem) > 1 else ''}"
        return f"{count} known by the end of the name only, as {name} for {micrograph}"


def places(names: Sequence[str], micrographs: Sequence[str]) -> Places:
    """The rows of `micrographs` that different `names` mean.

    Notes
    -----
    The path in the project decides; then the path without the job that made the file, as in RELION; then the stem,
    with the last folder, alone, or but for marks such as "_DW". What is not found exactly must be the only one of its
    kind among the names and among the micrographs, and no other file of the same size.
    """
    distinct = list(dict.fromkeys(names))
    first = {name: row for row, name in reversed(list(enumerate(micrographs)))}
    exact = {project_path(name): row for name, row in first.items()}
    found = Places()
    for name in distinct:
        if project_path(name) in exact:
            found.rows[name] = exact[project_path(name)]
    for key in (_without_job, _with_folder, micrograph_stem, bare_stem):
        free = set(range(len(micrographs))) - set(found.rows.values())
        keys = Counter(key(name) for name in distinct)
        rows: dict[str, list[int]] = {}
        for name, row in first.items():
            rows.setdefault(key(name), []).append(row)
        for name in distinct:
            candidates = rows.get(key(name), [])
            if name in found.rows or keys[key(name)] != 1 or len(candidates) != 1 or candidates[0] not in free:
                continue
            if key is not _without_job and _is_another(name, micrographs[candidates[0]]):
                continue
            found.rows[name] = candidates[0]
            found.by_stem.append((name, micrographs[candidates[0]]))
    return found


def unclear(names: Sequence[str], micrographs: Sequence[str], found: Places) -> str:
    """What keeps one of the names from meaning a micrograph that no other means; empty if nothing does.

    found : of `places` for the same names and micrographs.
    """
    left: dict[str, list[str]] = {}
    taken = {micrographs[row] for row in found.rows.values()}
    for name in dict.fromkeys(micrographs):
        if name not in taken:
            left.setdefault(bare_stem(name), []).append(name)
    unknown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        stem = bare_stem(name)
        if name in found.rows or stem not in left:
            continue
        if stem in unknown and len(left[stem]) == 1:
            return f"{left[stem][0]}: coordinates twice, as of {unknown[stem]} and of {name}"
        if len(left[stem]) > 1:
            return f"{name}: may be of {left[stem][0]} and of {left[stem][1]}"
        unknown[stem] = name
    return ""


def bare_stem(name: str) -> str:
    """The stem of a micrograph without the marks that motion correction and the like put at its end."""
    stem = micrograph_stem(name)
    return _MARKS.sub("", stem) or stem


def _without_job(name: str) -> str:
    return _PIPELINE_FOLDER.sub("", project_path(name))


def _with_folder(name: str) -> str:
    return f"{Path(project_path(name)).parent.name}/{micrograph_stem(name)}"


def _is_another(name: str, micrograph: str) -> bool:
    """Whether `name` is a file of its own with as many pixels as the micrograph, and so no binned form of it."""
    first, second = Path(name), Path(micrograph)
    if first.suffix.lower() in SUFFIXES or not first.is_file() or not second.is_file() or first.samefile(second):
        return False
    try:
        one, other = image_header(first), image_header(second)
    except InputError:
        return True
    return (one.rows, one.columns) == (other.rows, other.columns)

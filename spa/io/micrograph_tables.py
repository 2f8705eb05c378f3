"""The tables that a per-micrograph job writes: what came of the images of its input, and what failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from spa.errors import InputError
from spa.io import star
from spa.io.star import Block, StarFile

REASON = "spaFailure"
"""Column of the list of failed micrographs that says why."""

_OUTPUT_BLOCK = "micrographs"

Row: TypeAlias = dict[str, str | int | float]
"""Column of a STAR file, without underscore -> value."""

OpticsHook: TypeAlias = Callable[[dict[str, str]], Mapping[str, str | int | float]]
"""From the columns of an optics group to the columns to set in it."""


def write_rows(
    path: str | os.PathLike[str],
    found: StarFile,
    block: str,
    rows: Mapping[int, Row],
    optics: OpticsHook | None,
    owns: Sequence[str] = (),
) -> Block:
    """Write data_optics and data_micrographs: the input rows numbered in `rows`, in order, with their new columns.

    `found` is the input and `block` its table of images; its columns and other blocks pass through, but for the
    columns that the job `owns`, which are only what `rows` hold. Returns the table.

    Raises
    ------
    InputError
        If not all rows have the same columns, as rows kept by another version may not.
    """
    numbers = sorted(rows)
    table = _chosen(found[block], numbers)
    table.name = _OUTPUT_BLOCK
    table.drop(*owns)
    for column in dict.fromkeys(name for number in numbers for name in rows[number]):
        without = next((number for number in numbers if column not in rows[number]), None)
        if without is not None:
            name = f"{found.path}: data_{block}, row {without + 1}"
            raise InputError(f"{name}: an earlier version kept no {column}; run without --only_do_unfinished")
        table.set(column, [rows[number][column] for number in numbers])
    groups = found["optics"].copy()
    if optics is not None:
        _change_groups(groups, optics)
    others = [other for other in found if other.name not in ("optics", block)]
    star.write(path, StarFile([groups, table, *others]))
    return table


def refuse_losing(path: str | os.PathLike[str], column: str, names: Iterable[str], source: str) -> None:
    """Refuse to write a table over `path` that lacks images listed there (InputError).

    `column` holds the images of both tables, `names` are those of the input, the STAR file `source`.
    """
    if not os.path.isfile(path):
        return
    earlier = star.read(path)
    if _OUTPUT_BLOCK not in earlier or column not in earlier[_OUTPUT_BLOCK]:
        return
    known = set(names)
    lost = [name for name in earlier[_OUTPUT_BLOCK].text(column) if name not in known]
    if lost:
        raise InputError(
            f"{path}: holds {len(lost)} images that are not in {source}, as {lost[0]}; "
            "keep it and name another folder with --o"
        )


def failed_path(path: str | os.PathLike[str]) -> Path:
    """Where the list of failed micrographs beside the table `path` is."""
    path = Path(path)
    return path.with_name(f"{path.stem}_failed{path.suffix}")


def write_failed(path: str | os.PathLike[str], found: StarFile, block: str, reasons: Mapping[int, str]) -> None:
    """Write the input rows numbered in `reasons` with their reasons; if there are none, remove an old list.

    The list has the form of an input, so that what is mended can be tried again by itself.
    """
    if not reasons:
        failed_path(path).unlink(missing_ok=True)
        return
    failed = _chosen(found[block], sorted(reasons))
    failed.set(REASON, [reasons[number].replace('"', "'") for number in sorted(reasons)])
    star.write(failed_path(path), StarFile([found["optics"], failed]))


def _chosen(table: Block, numbers: list[int]) -> Block:
    return table.rows(np.array(numbers, dtype=np.int64))


def _change_groups(groups: Block, optics: OpticsHook) -> None:
    columns = {name: groups.text(name) for name in groups.columns}
    changes = [optics({name: values[i] for name, values in columns.items()}) for i in range(len(groups))]
    for name in dict.fromkeys(name for change in changes for name in change):
        groups.set(name, [change[name] for change in changes])

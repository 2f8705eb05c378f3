"""cryoSPARC .cs tables: NumPy structured arrays, one row per particle, fields named slot/field.

Fields are asked for by name and come as float64, int64 or text, so that a missing field, one of another shape or a
value that is no number is named by file, row and field.
"""

from __future__ import annotations

import os
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io.files import existing_file, write_whole

Say = Callable[[str], None]
"""What tells the user a line."""

_LONGEST_HEADER = 1 << 20  # bytes; a table of many slots has more than the 10,000 that NumPy takes unasked
_STREAM = b"\x94CSDAT"
_UNREADABLE = (ValueError, TypeError, OSError, EOFError, MemoryError, OverflowError, SyntaxError, tokenize.TokenError)
"""What np.load raises on a header that is none."""


@dataclass
class Table:
    """The rows of a .cs file, or of several joined by uid; `path` is the file named in errors."""

    path: str
    rows: NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, field: object) -> bool:
        return field in self.fields

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, such as "blob/path", in order."""
        return self.rows.dtype.names or ()

    def require(self, *fields: str) -> None:
        """Refuse the table if it lacks one of the fields (InputError)."""
        for field in fields:
            if field not in self:
                raise InputError(
                    f"{self.path}: no {field}; give the .cs file of the same job that has it (passthrough)"
                )

    def floats(self, field: str, *shape: int) -> NDArray[np.float64]:
        """A field as float64 (n, *shape), all finite.

        Values in single precision become the float64 with the fewest decimals that rounds to them: 2.7, not
        2.700000047683716.

        Raises
        ------
        InputError
            No such field, one that holds no numbers or others than `shape`, or a value that is not finite.
        """
        self.require(field)
        column = self.rows[field]
        if column.dtype.kind not in "iuf" or column.size != len(self) * int(np.prod(shape)):
            wanted = " x ".join(map(str, shape)) or "1"
            raise InputError(f"{self.path}: {field}: expected {wanted} numbers in each row, found {_kind(column)}")
        values = _decimal(column.reshape(len(self), *shape))
        finite = np.all(np.isfinite(values.reshape(len(self), -1)), axis=1)
        self.refuse(field, np.logical_not(finite), "finite numbers")
        return values

    def integers(self, field: str) -> NDArray[np.int64]:
        """A field of whole numbers as int64 (n,)."""
        return np.rint(self.floats(field)).astype(np.int64)

    def text(self, field: str) -> list[str]:
        """A field as text; the mark ">" of paths that cryoSPARC resolves itself is taken off."""
        self.require(field)
        column = self.rows[field]
        if column.dtype.kind not in "SU" or column.ndim != 1:
            raise InputError(f"{self.path}: {field}: expected text in each row, found {_kind(column)}")
        return [text_of(value).removeprefix(">") for value in column.tolist()]

    def refuse(self, field: str, bad: NDArray[np.bool_], expected: str) -> None:
        """Refuse the table if a row is `bad` (n,), naming the first of them (InputError)."""
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            found = self.rows[field][row]
            raise InputError(f"{self.path}: row {row + 1}, {field}: expected {expected}, found {found}")

    def uids(self) -> NDArray[np.uint64]:
        """Identifiers of the rows, uint64 (n,), all different (InputError)."""
        self.require("uid")
        uids = self.rows["uid"]
        if uids.dtype.kind not in "iu" or uids.ndim != 1:
            raise InputError(f"{self.path}: uid: expected a whole number in each row, found {_kind(uids)}")
        values, first = np.unique(uids, return_index=True)
        if len(values) < len(uids):
            row = int(np.setdiff1d(np.arange(len(uids)), first)[0])
            raise InputError(f"{self.path}: row {row + 1}, uid: {uids[row]} appears twice")
        return np.asarray(uids, dtype=np.uint64)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a .cs file.

    Raises
    ------
    InputError
        A missing, empty or truncated file, one that is no NumPy table, and one that holds Python objects.
    """
    path = existing_file(path, "cryoSPARC .cs table")
    with path.open("rb") as handle:
        start = handle.read(len(_STREAM))
    if start == _STREAM:
        raise InputError(f"{path}: a .cs file in cryoSPARC's stream form; expected one in NumPy's (export it again)")
    try:
        rows = np.load(path, allow_pickle=False, max_header_size=_LONGEST_HEADER)
    except _UNREADABLE as error:
        raise InputError(f"{path}: expected a cryoSPARC .cs table: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.names is None:
        raise InputError(f"{path}: expected a cryoSPARC .cs table, found a plain array")
    return Table(os.fspath(path), rows.reshape(-1))


def join(table: Table, others: Sequence[Table]) -> Table:
    """The table with the fields of `others` that it lacks, row for row by uid.

    Raises
    ------
    InputError
        A table without uid, with one uid twice, or with no row for a uid of `table`.
    """
    fields = {name: table.rows[name] for name in table.fields}
    for other in others:
        new = [name for name in other.fields if name not in fields]
        if new:
            rows = other.rows[rows_of(table.uids(), other)]
            fields |= {name: rows[name] for name in new}
    return Table(table.path, structured(fields))


def rows_of(uids: NDArray[np.uint64], table: Table) -> NDArray[np.int64]:
    """The rows of `table` that have the identifiers `uids` (InputError where one is missing)."""
    known = table.uids()
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, uids, sorter=order), max(len(known) - 1, 0))
    missing = known[order[place]] != uids if len(known) else np.ones(len(uids), dtype=bool)
    if missing.any():
        raise InputError(
            f"{table.path}: no row for {int(missing.sum())} of {len(uids)} particles, the first of them with uid "
            f"{uids[missing][0]}; expected a .cs file of the same particles"
        )
    return np.asarray(order[place], dtype=np.int64)


def structured(fields: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """A structured array (n,) of fields (n, ...), in their order."""
    n = len(next(iter(fields.values())))
    rows = np.empty(n, dtype=[(name, values.dtype, values.shape[1:]) for name, values in fields.items()])
    for name, values in fields.items():
        rows[name] = values
    return rows


def write_table(path: str | os.PathLike[str], rows: NDArray[Any]) -> None:
    """Write a structured array as a .cs file, whole or not at all."""

    def writer(temporary: Path) -> None:
        with temporary.open("wb") as handle:  # given a name, np.save would append .npy to it
            np.save(handle, rows, allow_pickle=False)

    write_whole(path, writer)


def text_of(value: bytes | str) -> str:
    """Text from what NumPy makes of a field of text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _decimal(column: NDArray[Any]) -> NDArray[np.float64]:
    if column.dtype != np.float32:
        return column.astype(np.float64)
    series = pl.Series(column.ravel()).cast(pl.String).cast(pl.Float64, strict=False)
    return np.array(series.to_numpy(), dtype=np.float64).reshape(column.shape)


def _kind(column: NDArray[Any]) -> str:
    shape = " x ".join(map(str, column.shape[1:])) or "1"
    return f"{shape} of type {column.dtype}"

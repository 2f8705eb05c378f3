"""The text of a STAR file: lines to columns of strings, and columns to lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import gemmi.cif
import numpy as np
import polars as pl

from spa.errors import InputError

CHUNK = 20_000
"""Rows held as Python strings at a time."""

SMALLEST, LARGEST = 1e-3, 1e9
"""Magnitudes outside which a number is written with an exponent, as six decimals would lose it."""

_RESERVED = r"^$|\s|^[\"'#_$;]|^(?i:data_|loop_|save_|stop_|global_)"

_Parsed = tuple[str, pl.DataFrame, bool]


class _Reader:
    """Builds blocks from lines; knows the line number for its errors."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.line = 0
        self.parsed: list[_Parsed] = []
        self._seen: dict[str, int] = {}
        self._open = False
        self._start("")

    def _start(self, name: str) -> None:
        self.name = name
        self.loop = False
        self.tags: list[str] = []
        self.values: list[str] = []
        self.chunks: list[pl.DataFrame] = []
        self.n_rows = 0

    def block(self, name: str) -> None:
        """Begin a block, after closing the one before."""
        self.close()
        if name in self._seen:
            raise self.error(f"block data_{name} appears a second time, first on line {self._seen[name]}")
        self._seen[name] = self.line
        self._start(name)
        self._open = True

    def close(self) -> None:
        """Turn the values gathered for the block into a table."""
        if not self._open:
            return
        self.flush()
        if not self.loop or not self.chunks:
            cells = [self.values[i : i + 1] for i in range(len(self.tags))]
            self.chunks = [_frame(self.tags, cells if not self.loop else [[] for _ in self.tags])]
        frame = pl.concat(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
        self.parsed.append((self.name, frame.rechunk() if len(self.chunks) > 1 else frame, self.loop))

    def begin_loop(self) -> None:
        """A line `loop_`."""
        if not self._open:
            raise self.error("expected data_BLOCK, found 'loop_'")
        if self.tags or self.loop:
            raise self.error(f"block data_{self.name} holds a second table; a RELION block holds one")
        self.loop = True

    def tag(self, words: list[str], line: str) -> None:
        """A line that names a column, or a pair."""
        if not self._open:
            raise self.error(f"expected data_BLOCK, found '{words[0][:40]}'")
        if self.n_rows:
            raise self.error(f"block data_{self.name} holds a table and pairs; a RELION block holds one of them")
        name = words[0][1:]
        if name in self.tags:
            raise self.error(f"block data_{self.name}: column {name} appears twice")
        if not self.loop:
            values = self.split(line, words)[1:]
            if len(values) > 1 and values[1].startswith("#"):
                values = values[:1]
            if len(values) != 1:
                raise self.error(f"block data_{self.name}: expected one value for {name}, found {len(values)}")
            self.values.extend(values)
        self.tags.append(name)

    def fits(self, words: list[str]) -> bool:
        """True if the words can be a row of the table being read."""
        return self.loop and len(words) == len(self.tags)

    def row(self, line: str, words: list[str]) -> None:
        """A line of values."""
        if not self.loop or not self.tags:
            raise self.error(f"expected data_BLOCK, loop_, _NAME or a comment, found '{line.strip()[:40]}'")
        values = self.split(line, words)
        if len(values) != len(self.tags):
            comment = next((i for i, value in enumerate(values) if value.startswith("#")), len(values))
            if comment != len(self.tags):
                raise self.error(
                    f"block data_{self.name}, row {self.n_rows + 1}: expected {len(self.tags)} values, found {comment}"
                )
            values = values[:comment]
        self.values.extend(values)
        self.n_rows += 1
        if self.n_rows % CHUNK == 0:
            self.flush()

    def flush(self) -> None:
        """Hand the rows gathered so far to polars."""
        if self.loop and self.values:
            width = len(self.tags)
            self.chunks.append(_frame(self.tags, [self.values[i::width] for i in range(width)]))
            self.values = []

    def split(self, line: str, words: list[str]) -> list[str]:
        """The values of a line: its words, or what gemmi finds where quotes hold white space together."""
        if '"' not in line and "'" not in line:
            return words
        if not any(word[0] in "\"'" for word in words):
            return words
        if all(word[0] not in "\"'" or (len(word) > 1 and word[-1] == word[0]) for word in words):
            return [word[1:-1] if word[0] in "\"'" else word for word in words]
        try:
            tag, values = ("", line) if words[0][0] != "_" or self.loop else line.strip().split(None, 1)
            document = gemmi.cif.read_string(f"data_x\nloop_\n_x\n{values}\n")
            found = [gemmi.cif.as_string(value) for value in document[0].find_values("_x")]
        except (ValueError, RuntimeError) as error:
            raise self.error(f"block data_{self.name}: quotes that do not close, or a value that needs them") from error
        return [tag, *found] if tag else found

    def error(self, message: str) -> InputError:
        """An InputError with file and line."""
        return InputError(f"{self.path}: line {self.line}: {message}")


def blocks(lines: Iterable[str], path: str) -> list[_Parsed]:
    """(name, columns of text, is a loop) of each block in the lines of a STAR file; `path` is for errors."""
    reader = _Reader(path)
    for number, line in enumerate(lines, 1):
        reader.line = number
        words = line.split()
        if not words or words[0][0] == "#":
            continue
        first = words[0]
        alone = len(words) == 1 or words[1][0] == "#"
        if first.startswith("data_") and (alone or not reader.fits(words)):
            reader.block(first[5:])
        elif first.lower() == "loop_" and alone:
            reader.begin_loop()
        elif first[0] == "_" and (alone or not reader.fits(words)):
            reader.tag(words, line)
        else:
            reader.row(line, words)
    reader.close()
    if not reader.parsed:
        raise InputError(f"{path}: expected a STAR file, found no data_ block")
    return reader.parsed


def formatted(series: pl.Series) -> pl.Series:
    """A column as text: text as it is, whole numbers plain, others with six decimals or an exponent."""
    if series.dtype == pl.String:
        return series
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return series.cast(pl.Int64).cast(pl.String)
    return pl.Series(series.name, [_number(value) for value in series.to_list()], dtype=pl.String)


def write_block(handle: BinaryIO, name: str, frame: pl.DataFrame, loop: bool) -> None:
    """Write one block in RELION's layout to a binary file."""
    handle.write(f"\n# version 50001\n\ndata_{name}\n\n".encode())
    if not loop:
        for column in frame.columns:
            value = _quoted(formatted(frame[column]))[0]
            handle.write(f"_{column:<45} {value}\n".encode())
    elif frame.width:
        header = "".join(f"_{column} #{i} \n" for i, column in enumerate(frame.columns, 1))
        handle.write(f"loop_ \n{header}".encode())
        for start in range(0, frame.height, CHUNK):
            part = frame[start : start + CHUNK]
            ready = pl.DataFrame([_ready(part[column]) for column in part.columns])
            ready.write_csv(
                handle,
                include_header=False,
                separator=" ",
                quote_style="never",
                float_precision=6,
                float_scientific=False,
            )
    handle.write(b"\n")


def _frame(names: list[str], columns: list[list[str]]) -> pl.DataFrame:
    pairs = zip(names, columns, strict=True)
    return pl.DataFrame([pl.Series(name, values, dtype=pl.String) for name, values in pairs])


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:.6e}" if 0 < size < SMALLEST or size >= LARGEST else f"{value:.6f}"


def _ready(series: pl.Series) -> pl.Series:
    """A column as polars should write it: text quoted where needed, small and large numbers as text."""
    if series.dtype == pl.String:
        return _quoted(series)
    if series.dtype.is_float():
        sizes = np.abs(series.to_numpy())
        if np.any((sizes > 0) & (sizes < SMALLEST)) or np.any(sizes >= LARGEST):
            return formatted(series)
        return series
    return series.cast(pl.Int64)


def _quoted(series: pl.Series) -> pl.Series:
    """Text with quotes around the values that need them."""
    needy = series.str.contains(_RESERVED)
    if not needy.any():
        return series
    return pl.Series(series.name, [_quote(v) if n else v for v, n in zip(series, needy, strict=True)])


def _quote(value: str) -> str:
    for mark in "\"'":
        inner_close = any(value[i] == mark and value[i + 1 : i + 2].isspace() for i in range(len(value)))
        if not inner_close and "\n" not in value and "\r" not in value:
            return f"{mark}{value}{mark}"
    raise InputError(f"a STAR file cannot hold this text: {value!r}")

"""Files that appear whole or not at all, and paths as RELION projects write them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spa.errors import InputError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    The temporary file is flushed to the disk before the rename and removed if the block raises, so that
    `path` holds either what it held before or all of the new content. Missing parent folders are made.

    Raises
    ------
    InputError
        If the folder or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path}: cannot be written: it is a folder")
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, *path.parents):
            raise
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a folder that could not be written holds nothing to remove
            temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> None:
    """Write `path` whole or not at all: `writer(temporary_path)` makes the content.

    Raises
    ------
    InputError
        If the folder or the file cannot be written.
    """
    with whole_file(path) as temporary:
        writer(temporary)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def existing_file(path: str | os.PathLike[str], kind: str = "file") -> Path:
    """`path` as a Path if it is a readable, non-empty file.

    Raises
    ------
    InputError
        If it is missing, a folder, empty or not readable; `kind` names what was expected.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected a {kind}, found a folder")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: expected a {kind}, found nothing there ({error.strerror})") from error
    if size == 0:
        raise InputError(f"{path}: expected a {kind}, found an empty file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: expected a {kind}, found a file that may not be read")
    return path


def resolve(name: str, star: str | os.PathLike[str] | None = None) -> Path:
    """Where the file called `name` in a STAR file lies.

    A relative name is looked for in the current folder (a RELION project) and then, where nothing is there,
    in the folder of the STAR file `star`. If it is in neither, the first place is returned.
    """
    path = Path(name)
    if path.is_absolute() or star is None or path.exists():
        return path
    beside = Path(star).parent / path
    return beside if beside.exists() else path


def project_path(path: str | os.PathLike[str]) -> str:
    """`path` as written into a STAR file: relative to the current folder when below it, else absolute."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.as_posix()


def _flush(path: Path) -> None:
    """Ask the system to put a file or a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""What a per-micrograph job keeps of a finished micrograph, so that a later run need not do it again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spa.io.files import write_text
from spa.io.micrographs import Item, file_state, names_of_files

_DONE = "_done.json"
_CLOCK = 1_000_000_000  # ns by which the time of a file may be behind
_LEFTOVER = re.compile(r"^\..+\.(\d+)\.[0-9a-f]{8}\.tmp$")


class Finished:
    """The kept rows of a job, one `STEM_done.json` beside the outputs of each micrograph.

    A kept row holds as long as the settings, the input row, its optics group and the size and time of the image
    file are what they were, and the files that it names or that begin with its stem are there with the size they had.
    Of two `stems` of the job, such as x and x_1, a file belongs to the longer one that it begins with.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any], stems: Collection[str]) -> None:
        self.folder = Path(folder)
        self.stems = frozenset(stems)
        self.settings = json.dumps(settings, sort_keys=True)

    def load(self, item: Item) -> dict[str, Any] | None:
        """The kept row of a micrograph; None if there is none that holds."""
        try:
            kept = json.loads(self._path(item).read_text(encoding="utf-8"))
            row, files = dict(kept["row"]), dict(kept["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if kept.get("of") != self._mark(item):
            return None
        return row if all(file_state(name)[0] == size for name, size in files.items()) else None

    def keep(self, item: Item, row: Mapping[str, Any], since: int = 0) -> None:
        """Keep the row of a finished micrograph, and the files written for it since the time `since` (ns)."""
        names = {*names_of_files(row), *self._written(item, since - _CLOCK)}
        files = {name: file_state(name)[0] for name in sorted(names)}
        kept = {"of": self._mark(item), "files": files, "row": dict(row)}
        write_text(self._path(item), json.dumps(kept) + "\n")

    def forget(self, item: Item) -> None:
        """Remove what was kept of a micrograph that is about to be done again."""
        self._path(item).unlink(missing_ok=True)

    def _written(self, item: Item, since: int) -> Iterator[str]:
        """Files of a stem that are as young as `since`."""
        stem = self.folder / item.stem
        begin = re.compile(rf"{re.escape(stem.name)}[._]")
        if stem.parent.is_dir():
            for entry in os.scandir(stem.parent):
                if not begin.match(entry.name) or entry.name.endswith(_DONE) or entry.stat().st_mtime_ns < since:
                    continue
                if self._owner(Path(item.stem).parent / entry.name) == item.stem:
                    yield str(stem.parent / entry.name)

    def _owner(self, path: Path) -> str | None:
        """The longest stem with which a file, relative to the folder, begins."""
        ends = [match.start() for match in re.finditer(r"[._]", path.name)]
        beginnings = (str(path.parent / path.name[:end]) for end in reversed(ends) if end)
        return next((beginning for beginning in beginnings if beginning in self.stems), None)

    def _path(self, item: Item) -> Path:
        return self.folder / f"{item.stem}{_DONE}"

    def _mark(self, item: Item) -> str:
        """What a row depends on, as one word."""
        facts = [self.settings, item.row, item.optics, str(item.path), file_state(item.path)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove the half-written files that a killed process left in the folders."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            match = _LEFTOVER.match(path.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                path.unlink(missing_ok=True)

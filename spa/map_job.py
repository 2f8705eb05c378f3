"""What every per-micrograph job shares: workers, progress, resume, failures and the output STAR file.

A job is one function `process(item, options) -> row` at the top of its module, and a `run` that calls
`map_micrographs`. A micrograph that fails is left out and listed with its reason; the job fails only if all do.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from spa.errors import InputError, Interrupted
from spa.io.files import existing_file, project_path
from spa.io.finished import Finished, remove_leftovers
from spa.io.memory import available_memory
from spa.io.micrograph_tables import OpticsHook, Row, failed_path, refuse_losing, write_failed, write_rows
from spa.io.micrographs import MICROSCOPE, Item, file_state, read_items
from spa.io.name_matching import of_micrographs
from spa.io.star import Block
from spa.job import Job
from spa.options import CommonOptions, option, specs
from spa.workers import Worker, heard, use, worker_device

__all__ = ["Item", "MicrographOptions", "Row", "map_micrographs", "worker_device"]

_REPORTS = 10  # lines of progress in run.out
_LOOKED_AT = 20  # micrographs whose size says how many fit in memory


@dataclass(frozen=True, kw_only=True)
class MicrographOptions(CommonOptions):
    """Options of every per-micrograph job."""

    every_gpu: ClassVar[bool] = True

    i: str = option(help="STAR file of the images", role="input")
    o: str = option(help="Output folder", role="folder")
    only_do_unfinished: bool = option(
        False, help="Keep what an earlier run with the same options and input finished", group="Compute"
    )


OptionsT = TypeVar("OptionsT", bound=MicrographOptions)


def map_micrographs(
    job: Job,
    options: OptionsT,
    process: Callable[[Item, OptionsT], Row],
    *,
    block: str,
    column: str,
    output: str,
    optics: OpticsHook | None = None,
    needs: Sequence[str] = MICROSCOPE,
    memory: Callable[[Item], int] | None = None,
    named_after: str | None = None,
    owns: Sequence[str] = (),
    reserved: Sequence[str] = (),
    state: str = "",
) -> Block:
    """Run `process` over the images of a STAR file and write the table of what it found.

    Parameters
    ----------
    process : `process(item, options) -> row` at the top of a module. It writes its own files, named
        `Path(options.o) / (item.stem + suffix)`, whole or not at all, and returns the columns to add. An InputError
        says what is wrong with a micrograph; any other exception counts as a failure of the micrograph, too, with
        its traceback in run.err. A value that is no finite number is a failure.
    block, column : table of the input STAR file and its column of image names, e.g. "movies",
        "rlnMicrographMovieName".
    output : name of the STAR file to write in the output folder: data_optics and data_micrographs, in the order of
        the input; columns and blocks of the input pass through. Failed micrographs go to `output` with "_failed",
        which can be the input of another try, into another folder.
    optics : called with the columns of each optics group, returns the columns to set in it.
    needs : columns that every optics group must have besides a pixel size.
    memory : bytes that `process` takes for a micrograph; the largest of the first 20 decides how many workers fit.
        An InputError counts as 0.
    named_after : the column whose names the outputs take, where that is not `column`.
    owns : columns that come from `process` only, so that those of an earlier run in the input are dropped.
    reserved : names in the output folder, without suffix, that the outputs of no micrograph may have.
    state : changes with whatever else a result depends on, such as what the files say that a list names.

    Returns
    -------
    The table written, without the failed ones.

    Raises
    ------
    InputError
        As `read_items`; outputs would replace the images, or a table of other images; no micrograph could be
        processed.
    Interrupted
        As `Job.check_abort`; the micrographs being processed are finished before.
    """
    found, items = read_items(options.i, block, column, options.random_seed, needs, named_after, reserved)
    path = Path(options.o) / output
    _refuse_replacing(items, options)
    refuse_losing(path, column, (item.row[column] for item in items), options.i)
    _warn_of_repeats(items, options, job)
    remove_leftovers({(Path(options.o) / item.stem).parent for item in items})
    finished = Finished(
        options.o, _settings(options) | ({"state": state} if state else {}), {item.stem for item in items}
    )
    rows: dict[int, Row] = {}
    if options.only_do_unfinished or options.continue_:
        rows = {item.number: row for item in items if (row := finished.load(item)) is not None}
        job.say(f"{of_micrographs(len(rows), len(items))} are finished")
    job.resume_flags = ("--only_do_unfinished",)
    unfinished = [item for item in items if item.number not in rows]
    run = _Run(job, rows, functools.partial(_attempt, process, options, finished))
    run.do(unfinished, _largest(memory, unfinished[:_LOOKED_AT]) if memory is not None else 0)
    write_failed(path, found, block, run.reasons)
    if not rows:
        first = run.reasons[min(run.reasons)]
        raise InputError(f"none of the {len(items)} micrographs could be processed; the first: {first}")
    table = write_rows(path, found, block, rows, optics, owns)
    left_out = f", {len(run.reasons)} left out and listed in {failed_path(path)}" if run.reasons else ""
    job.say(f"{of_micrographs(len(rows), len(items))} in {path}{left_out}")
    return table


@dataclass(frozen=True)
class _Failure:
    """Why a micrograph failed, in one line, and the traceback of what was not expected."""

    reason: str
    trace: str = ""


_Outcome: TypeAlias = Row | _Failure
_Worker: TypeAlias = Worker[Item, _Outcome]


class _Run:
    """Processes micrographs, in this process or in workers; fills `rows` and `reasons`, both by number."""

    def __init__(self, job: Job, rows: dict[int, Row], attempt: Callable[[Item], _Outcome]) -> None:
        self.job = job
        self.rows = rows
        self.reasons: dict[int, str] = {}
        self._attempt = attempt
        self._suspects: list[Item] = []

    def do(self, items: list[Item], memory: int) -> None:
        """Process `items`, each of which takes `memory` bytes: in workers unless there is one thread or one item."""
        devices: list[int | None] = [*self.job.devices] or [None] * self.job.options.j
        fitting = max(1, available_memory() // memory) if memory else len(devices)
        if fitting < min(len(devices), len(items)):
            self.job.say(f"{fitting} at a time, for the memory that is free: each takes {memory / 2**30:.1f} GiB")
        devices = devices[: min(len(items), fitting)]
        with self.job.progress(len(items), self.job.name, "micrographs") as bar:
            self._report = _Report(self.job, bar, len(items))
            if max(len(devices), self.job.options.j) == 1 or len(items) <= 1:
                use(self.job.options.j, devices[0] if devices else None)
                for item in items:
                    self.job.check_abort()
                    self._take(item, self._attempt(item))
                return
            self._in_workers(items, devices)
            suspects, self._suspects = self._suspects, []
            for item in suspects:
                self._in_workers([item], devices[:1], last_try=True)

    def _take(self, item: Item, outcome: _Outcome) -> None:
        if isinstance(outcome, _Failure):
            self.reasons[item.number] = outcome.reason
            self.job.warn(f"left out {outcome.reason}")
            if outcome.trace:
                self.job.log_error(outcome.trace)
        else:
            self.rows[item.number] = outcome
        self._report.step(len(self.reasons))

    def _in_workers(self, items: list[Item], devices: Sequence[int | None], last_try: bool = False) -> None:
        """Process `items` in a worker for each of `devices`; one that dies is replaced."""
        threads = max(1, self.job.options.j // len(devices))
        waiting = deque(items)
        workers: list[_Worker] = []
        try:
            for device in devices:
                workers.append(Worker(self._attempt, device, threads))
                workers[-1].give(waiting.popleft())
            while busy := [worker for worker in workers if worker.task is not None]:
                for worker in heard(busy):
                    self._hear(worker, last_try)
                self._check_abort(workers)
                for place, worker in enumerate(workers):
                    if worker.task is None and waiting:
                        if not worker.alive():
                            workers[place] = worker = Worker(self._attempt, worker.device, threads)
                        worker.give(waiting.popleft())
        finally:
            for worker in workers:
                worker.end()

    def _hear(self, worker: _Worker, last_try: bool) -> None:
        """Take in what a worker has to say, or its death."""
        item, outcome = worker.task, worker.receive()
        if item is None or worker.task is not None:
            return
        if outcome is not None:
            self._take(item, outcome)
        elif last_try:
            self._take(item, _Failure(f"{item.path}: its process ended again: {worker.cause()}"))
        else:
            self._suspects.append(item)
            self.job.warn(f"{item.path}: its process ended: {worker.cause()}; to be tried once more, alone")

    def _check_abort(self, workers: list[_Worker]) -> None:
        """As `Job.check_abort`, after what is being processed is finished and kept."""
        try:
            self.job.check_abort()
        except Interrupted:
            busy = [worker for worker in workers if worker.task is not None]
            if busy:
                self.job.say(f"asked to stop: finishing {len(busy)} micrographs first; a second signal stops at once")
            for worker in busy:
                while worker.task is not None:
                    self._hear(worker, last_try=False)
            raise


def _attempt(
    process: Callable[[Item, OptionsT], Row], options: OptionsT, finished: Finished, item: Item
) -> Row | _Failure:
    """Process one micrograph and keep its row; what goes wrong becomes a reason."""
    start = time.time_ns()
    try:
        finished.forget(item)
        existing_file(item.path, "movie or micrograph")
        row = {name: _finite(name, value) for name, value in process(item, options).items()}
        finished.keep(item, row, start)
        return row
    except InputError as error:
        return _Failure(_about(item, str(error)))
    except Exception as error:
        return _Failure(_about(item, f"{type(error).__name__}: {error}"), traceback.format_exc().rstrip())


def _about(item: Item, message: str) -> str:
    line = " ".join(message.split())
    return line if line.startswith(str(item.path)) else f"{item.path}: {line}"


def _finite(name: str, value: Any) -> str | int | float:
    """A value of a row as plain Python."""
    plain: str | int | float = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise InputError(f"{name} came out as {plain}, expected a finite number")
    return plain


class _Report:
    """Progress: a bar on a terminal, some lines in run.out."""

    def __init__(self, job: Job, bar: Any, total: int) -> None:
        self.job, self.bar, self.total = job, bar, total
        self.done = 0
        self.start = time.monotonic()

    def step(self, n_failed: int) -> None:
        """One more is done; `n_failed` failed so far."""
        self.done += 1
        self.bar.update()
        if self.done * _REPORTS // self.total == (self.done - 1) * _REPORTS // self.total:
            return
        seconds = time.monotonic() - self.start
        left = seconds / self.done * (self.total - self.done)
        failed = f", {n_failed} left out" if n_failed else ""
        self.job.say(
            f"{of_micrographs(self.done, self.total)}{failed}; {self.done / max(seconds, 1e-9):.3g} a second, "
            f"{left / 60:.1f} minutes left"
        )


def _settings(options: MicrographOptions) -> dict[str, Any]:
    """The options that a result depends on, with the state of the files they name."""
    common = {field.name for field in fields(MicrographOptions)}
    settings = {name: value for name, value in asdict(options).items() if name not in common}
    for spec in specs(type(options)):
        if spec.role == "input" and settings.get(spec.name):
            given = settings[spec.name]
            settings[spec.name] = [[path, *file_state(path)] for path in ([given] if isinstance(given, str) else given)]
    return settings


def _refuse_replacing(items: list[Item], options: MicrographOptions) -> None:
    """Refuse an output folder in which outputs would lie where their images do."""
    for item in items:
        if (Path(options.o) / item.stem).absolute().parent == item.path.absolute().parent:
            raise InputError(
                f"--o {options.o}: outputs would lie beside the images, as {item.path}; name another folder"
            )


def _warn_of_repeats(items: list[Item], options: MicrographOptions, job: Job) -> None:
    """Name the images that are listed more than once."""
    counts = Counter(project_path(item.path) for item in items)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        names = ", ".join(repeated[:5]) + (", ..." if len(repeated) > 5 else "")
        job.warn(f"{options.i}: listed more than once, and each time processed: {names}")


def _largest(memory: Callable[[Item], int], items: list[Item]) -> int:
    """The most memory that one of the items takes; one that cannot be read takes none."""
    largest = 0
    for item in items:
        with contextlib.suppress(InputError):
            largest = max(largest, memory(item))
    return largest

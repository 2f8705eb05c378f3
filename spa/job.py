"""The frame of a job: its folder, logs, record, status files, abort requests and progress bars."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from tqdm import tqdm

import spa
from spa.comm import Communicator, Serial
from spa.errors import InputError, Interrupted
from spa.io.files import write_text, write_whole
from spa.kernels import backend
from spa.options import CommonOptions, gpu_ids, specs

HASHED_BYTES = 8 << 20  # a larger input is known by its first bytes and its size
_PACKAGES = ("numpy", "scipy", "numba", "mrcfile", "starfile", "gemmi", "polars", "click", "tifffile", "imagecodecs")
_CUPY_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
_SUCCESS, _FAILURE, _ABORTED = (f"RELION_JOB_EXIT_{word}" for word in ("SUCCESS", "FAILURE", "ABORTED"))
_ABORT_NOW = "RELION_JOB_ABORT_NOW"


class Job:
    """One run of a job, as a context manager.

    Entering makes the folder, opens `run.out` and `run.err` (appended), removes old RELION_JOB_EXIT_* files,
    writes `job.json` and turns SIGINT and SIGTERM into abort requests. Leaving writes the exit file and
    completes `job.json`; exceptions pass through.

    Attributes
    ----------
    folder : Path of the output files.
    rootname : the start of the output file names, e.g. "Refine3D/job001/run".
    devices : numbers of the GPUs to use; empty for the CPU.
    comm : the processes that share the work.
    resume_from : the file `--continue` would take; a job sets it after each checkpoint.
    resume_flags : flags with which the same command goes on where it stopped, for a job without checkpoints.

    Raises
    ------
    InputError
        If the folder cannot be written, an input file is missing or `--gpu` asks for what is not there.
    """

    def __init__(self, name: str, options: CommonOptions, command: list[str] | None = None) -> None:
        self.name = name
        self.options = options
        self.command = command if command is not None else ["spa", name]
        self.folder, self.rootname = _output(options)
        self.control = Path(options.pipeline_control) if options.pipeline_control else self.folder
        self.devices: tuple[int, ...] = ()
        self.comm: Communicator = Serial()
        self.resume_from: Path | None = None
        self.resume_flags: tuple[str, ...] = ()
        self._logs: list[TextIO] = []
        self._record: dict[str, Any] = {}
        self._signal: int | None = None
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Job:
        self.devices = usable_devices(self.options.gpu)
        backend.set_threads(self.options.j)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.control.mkdir(parents=True, exist_ok=True)
            for leftover in (_SUCCESS, _FAILURE, _ABORTED, _ABORT_NOW):
                (self.control / leftover).unlink(missing_ok=True)
            self._logs = [(self.folder / f"run.{end}").open("a", encoding="utf-8") for end in ("out", "err")]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be written: {error.strerror}") from None
        try:
            self._record = self._first_record()
            self._write_record()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            self._catch(number)
        self._log(0, f"{self._record['started']} {shlex.join(self.command)}")
        if len(self.devices) > 1 and not getattr(self.options, "every_gpu", False):
            self.warn(f"a job uses one GPU: number {self.devices[0]} of those given")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        if kind is None:
            status = _SUCCESS
        elif kind in (Interrupted, KeyboardInterrupt):
            status = _ABORTED
        else:
            status = _FAILURE
        if isinstance(error, InputError | Interrupted):
            self._log(1, f"error: {error}")
        elif error is not None:
            self._log(1, "".join(traceback.format_exception(kind, error, trace)).rstrip())
            error.add_note(f"traceback in {self.folder / 'run.err'}")
        for log in self._logs:
            log.close()
        try:
            self._record |= {"finished": _now(), "status": status.rpartition("_")[2].lower()}
            if "job" in self._record:
                self._write_record()
            (self.control / status).touch()
        except (OSError, InputError):
            if error is None:
                raise

    # What is said

    def say(self, text: str) -> None:
        """Tell the user one line: on the terminal unless `--quiet`, and in run.out."""
        self._log(0, text)
        if not self.options.quiet and not _is_same_file(sys.stdout, self._logs[0]):
            _write(text, sys.stdout)

    def warn(self, text: str) -> None:
        """Tell the user of something doubtful: on the terminal, and in run.err."""
        self._log(1, f"warning: {text}")
        if not self.options.quiet and not _is_same_file(sys.stderr, self._logs[1]):
            _write(f"warning: {text}", sys.stderr)

    def log_error(self, text: str) -> None:
        """Keep a longer account of an error in run.err only."""
        self._log(1, text)

    def progress(self, total: int, description: str, unit: str = "particles") -> Any:
        """A tqdm progress bar on stderr; invisible with `--quiet` or where stderr is not a terminal."""
        hidden = self.options.quiet or not sys.stderr.isatty()
        return tqdm(total=total, desc=description, unit=f" {unit}", disable=hidden, leave=False, dynamic_ncols=True)

    # What is asked of it

    def check_abort(self) -> None:
        """Raise Interrupted if RELION_JOB_ABORT_NOW appeared or a signal came; called between batches."""
        request = self.control / _ABORT_NOW
        if request.exists():
            request.unlink(missing_ok=True)
            reason = f"{request} found"
        elif self._signal is not None:
            reason = signal.Signals(self._signal).name
        else:
            return
        raise Interrupted(f"interrupted ({reason}); {self._how_to_go_on()}")

    def write_whole(self, path: str | os.PathLike[str], writer: Callable[[Path], object]) -> Path:
        """Write an output file whole or not at all; `writer(temporary_path)` makes the content."""
        write_whole(path, writer)
        return Path(path)

    def path(self, suffix: str) -> Path:
        """The output file `rootname + suffix`, e.g. path("_class001.mrc")."""
        return Path(self.rootname + suffix)

    def add_input(self, path: str | os.PathLike[str]) -> None:
        """Record the hash of one more input file in job.json."""
        self._record["inputs"][str(path)] = file_hash(path)
        self._write_record()

    # Inner matters

    def _how_to_go_on(self) -> str:
        if self.resume_flags:
            flags = [flag for flag in self.resume_flags if flag not in self.command]
            return f"continue with: {shlex.join([*self.command, *flags])}"
        if self.resume_from is None:
            return f"start again with: {shlex.join(self.command)}"
        command = ["spa", self.name, "--continue", str(self.resume_from)]
        return f"continue with: {shlex.join(command)}"

    def _catch(self, number: int) -> None:
        """Turn a signal into a request; the second one of its kind stops the job where it is."""

        def note(received: int, frame: FrameType | None) -> None:
            self._signal = received
            signal.signal(received, stop)

        def stop(received: int, frame: FrameType | None) -> None:
            signal.signal(received, signal.SIG_IGN)
            raise Interrupted(f"stopped at once ({signal.Signals(received).name}); {self._how_to_go_on()}")

        try:
            self._old_handlers[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever runs the job minds the signals
            return

    def _first_record(self) -> dict[str, Any]:
        inputs = {}
        for spec in specs(type(self.options)):
            if spec.role == "input":
                value = getattr(self.options, spec.name)
                for path in value if spec.repeated else (value,):
                    if path:
                        inputs[path] = file_hash(path)
        return {
            "job": self.name,
            "command": shlex.join(self.command),
            "options": asdict(self.options),
            "seed": self.options.random_seed,
            "versions": _versions(),
            "inputs": inputs,
            "folder": os.getcwd(),
            "started": _now(),
        }

    def _write_record(self) -> None:
        write_text(self.folder / "job.json", json.dumps(self._record, indent=2) + "\n")

    def _log(self, which: int, text: str) -> None:
        if self._logs:
            self._logs[which].write(text + "\n")
            self._logs[which].flush()


def usable_devices(gpu: str | None) -> tuple[int, ...]:
    """The device numbers behind `--gpu`; empty for the CPU.

    Raises
    ------
    InputError
        If a GPU is asked for and cannot be used; the message says why.
    """
    ids = gpu_ids(gpu)
    if ids is None:
        return ()
    problem = backend.gpu_problem()
    if problem is not None:
        raise InputError(f"{f'--gpu {gpu}'.strip()}: no usable GPU: {problem}")
    count = backend.gpu_count()
    for number in ids:
        if number >= count:
            raise InputError(f"--gpu {gpu}: no usable GPU {number}: this machine has {count}, numbered from 0")
    return ids or tuple(range(count))


def file_hash(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size and SHA-256 of a file (of its first `HASHED_BYTES` bytes if it is larger).

    Raises
    ------
    InputError
        If the file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as handle:
            digest = hashlib.sha256(handle.read(HASHED_BYTES)).hexdigest()
            size = os.fstat(handle.fileno()).st_size
    except IsADirectoryError:
        raise InputError(f"{path}: expected a file, found a folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return {"bytes": size, "hashed_bytes": min(size, HASHED_BYTES), "sha256": digest}


def _output(options: CommonOptions) -> tuple[Path, str]:
    """(folder, rootname) from the output option, the one whose role is file, rootname or folder."""
    for spec in specs(type(options)):
        value = getattr(options, spec.name)
        if spec.role == "folder":
            return Path(value), str(Path(value)) + os.sep
        if spec.role in ("file", "rootname"):
            if value.endswith(os.sep) or Path(value).is_dir():
                if spec.role == "file":
                    raise InputError(f"{spec.flags[0]} {value}: expected the name of a file, found a folder")
                value = str(Path(value) / "run")
            return Path(value).parent, value
    raise TypeError(f"{type(options).__name__}: no option has the role of an output")


def _versions() -> dict[str, str]:
    found = {"spa": spa.__version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *_CUPY_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _write(text: str, stream: TextIO) -> None:
    """Write a line beside progress bars; that nobody reads it any more (`| head`) is no reason to stop."""
    with contextlib.suppress(BrokenPipeError):
        tqdm.write(text, file=stream)


def _is_same_file(stream: TextIO, log: TextIO) -> bool:
    """True when `stream` is already redirected into `log`, as RELION's pipeliner does."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.fstat(log.fileno()))
    except (OSError, ValueError):
        return False

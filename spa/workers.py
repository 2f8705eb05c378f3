"""Processes that each work on one task at a time, so that a crash takes down one task and not the job."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from spa.kernels import backend

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_STARTED = "started"
_POLL = 0.5  # seconds

_device: int | None = None


def worker_device() -> int | None:
    """The GPU that this process works on, None for the CPU; `use` has made it current."""
    return _device


def use(threads: int, device: int | None) -> None:
    """Let this process work on `threads` threads and a GPU (None: the CPU)."""
    global _device
    _device = device
    backend.set_threads(threads)
    backend.use_device(device)


class Worker(Generic[TaskT, ResultT]):
    """A spawned process that calls `function(task)` for one task after the other.

    `function` is picklable and catches its own exceptions. `task` is what it works on, None for nothing.
    The process ignores SIGINT and SIGTERM, which are for its parent to mind, and ends with its parent.
    """

    def __init__(self, function: Callable[[TaskT], ResultT], device: int | None, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.task: TaskT | None = None
        self._started = False
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, function, device, threads), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, task: TaskT) -> None:
        """Hand over a task; that the process has died meanwhile is found out by `receive`."""
        self.task = task
        try:
            self.connection.send(task)
        except OSError:
            return

    def receive(self) -> ResultT | None:
        """Wait for a message. With the result of the task, or None for a death, `task` becomes None.

        Raises
        ------
        RuntimeError
            If the process ended before it could work.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            if not self._started:
                raise RuntimeError(f"a worker process ended as it started: {self.cause()}") from None
            self.task = None
            return None
        if not self._started and message == _STARTED:
            self._started = True
            return None
        self.task = None
        result: ResultT = message
        return result

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def cause(self) -> str:
        """How the process ended, in words."""
        code = self._process.exitcode or 0
        if code >= 0:
            return f"exit status {code}"
        memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"

    def end(self) -> None:
        """Stop the process, at once if it is at work."""
        if self.task is not None:
            self._process.kill()
        self.connection.close()
        self._process.join()


def heard(workers: Sequence[Worker[TaskT, ResultT]]) -> Iterator[Worker[TaskT, ResultT]]:
    """The workers that have something to say, after a short wait for any."""
    ready = wait([worker.connection for worker in workers], timeout=_POLL)
    return (worker for worker in workers if worker.connection in ready)


def _work(connection: Connection, function: Callable[[Any], Any], device: int | None, threads: int) -> None:
    """What the process does: call the function for what it is given until the other end closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    use(threads, device)
    connection.send(_STARTED)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(function(task))


def _end_with_parent() -> None:
    """End this process when its parent is gone, even killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        signal.raise_signal(signal.SIGKILL)

"""The frame of a job: folder, record, abort requests, devices."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spa.errors import InputError, Interrupted
from spa.job import HASHED_BYTES, Job, file_hash, usable_devices
from spa.kernels import backend
from spa.options import UsageError, gpu_ids
from tests.cli.echo_job import Options


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.chdir(tmp_path)
    Path("in.star").write_text("data_\n")
    return Options(i="in.star", o="Echo/job001/run", random_seed=11, quiet=True, j=1)


def test_record_tells_command_options_seed_versions_and_inputs(options: Options) -> None:
    with Job("echo", options, ["spa", "echo", "--i", "in.star"]) as job:
        Path("more.mrc").write_bytes(b"more")
        job.add_input("more.mrc")
        running = json.loads(Path("Echo/job001/job.json").read_text())
        assert "finished" not in running
    record = json.loads(Path("Echo/job001/job.json").read_text())
    assert record["command"] == "spa echo --i in.star"
    assert (record["job"], record["seed"], record["status"]) == ("echo", 11, "success")
    assert record["options"]["count"] == 3
    assert record["options"]["i"] == "in.star"
    assert {"spa", "python", "numpy", "numba"} <= set(record["versions"])
    assert record["inputs"]["in.star"]["sha256"] == hashlib.sha256(b"data_\n").hexdigest()
    assert record["inputs"]["more.mrc"] == {
        "bytes": 4,
        "hashed_bytes": 4,
        "sha256": hashlib.sha256(b"more").hexdigest(),
    }
    assert record["started"] <= record["finished"]


def test_large_inputs_are_known_by_their_beginning_and_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(HASHED_BYTES) + b"tail")
    found = file_hash(path)
    assert found["bytes"] == HASHED_BYTES + 4
    assert found["sha256"] == hashlib.sha256(bytes(HASHED_BYTES)).hexdigest()


def test_rootname_folder_and_file(options: Options) -> None:
    job = Job("echo", options)
    assert job.folder == Path("Echo/job001")
    assert job.path("_it001_data.star") == Path("Echo/job001/run_it001_data.star")
    assert Job("echo", Options(i="in.star", o="Echo/job002/")).path(".mrc") == Path("Echo/job002/run.mrc")
    assert Job("echo", Options(i="in.star", o="run")).folder == Path()


def _request_abort(options: Options, request: Callable[[], object]) -> None:
    """A job that notices `request` at its next batch, not before."""
    with Job("echo", options, ["spa", "echo", "--i", "in.star"]) as job:
        job.check_abort()
        request()
        assert job.folder.exists()
        job.check_abort()


def test_abort_file_is_honoured_once_and_names_the_command(options: Options) -> None:
    request = Path("Echo/job001/RELION_JOB_ABORT_NOW")
    with pytest.raises(Interrupted, match=r"start again with: spa echo --i in\.star") as caught:
        _request_abort(options, request.touch)
    assert request.name in str(caught.value)
    assert [path.name for path in Path("Echo/job001").glob("RELION*")] == ["RELION_JOB_EXIT_ABORTED"]


def test_pipeline_control_holds_the_status_files(options: Options) -> None:
    controlled = Options(i="in.star", o="Echo/job001/run", pipeline_control="Control", quiet=True, j=1)
    with Job("echo", controlled):
        pass
    assert Path("Control/RELION_JOB_EXIT_SUCCESS").exists()
    assert not list(Path("Echo/job001").glob("RELION*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_ask_for_an_abort_at_the_next_batch(options: Options, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name):
        _request_abort(options, lambda: os.kill(os.getpid(), number))
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_says_how_to_go_on(options: Options, number: signal.Signals) -> None:
    def twice() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        signal.pause()

    with pytest.raises(Interrupted, match=r"stopped at once .*start again with: "):
        _request_abort(options, twice)
    assert (Path(options.o).parent / "RELION_JOB_EXIT_ABORTED").exists()


def test_output_that_cannot_be_written_is_told(options: Options) -> None:
    Path("plain").write_text("a file, not a folder")
    with pytest.raises(InputError, match="plain"), Job("echo", Options(i="in.star", o="plain/run")):
        pass


def test_terminal_redirected_into_the_log_is_not_written_twice(tmp_path: Path) -> None:
    script = (
        "from spa.job import Job; from tests.cli.echo_job import Options\n"
        "with Job('echo', Options(i='in.star', o='run', j=1)) as job: job.say('once')\n"
    )
    (tmp_path / "in.star").write_text("data_\n")
    root = str(Path(__file__).resolve().parents[2])
    with (tmp_path / "run.out").open("a") as log:
        environment = {**os.environ, "PYTHONPATH": root}
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=log, check=True, env=environment)
    assert (tmp_path / "run.out").read_text().count("once") == 1


def test_gpu_syntax_is_relions() -> None:
    assert gpu_ids(None) is None
    assert gpu_ids("") == ()
    assert gpu_ids("2") == (2,)
    assert gpu_ids("0,1:2:1") == (0, 1, 2)
    for wrong in ("a", "0,", "-1", "0;1"):
        with pytest.raises(UsageError, match="--gpu"):
            gpu_ids(wrong)


def test_a_gpu_that_cannot_be_used_is_an_error_never_the_cpu(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "gpu_problem", lambda: "CuPy is not installed (pip install 'spa-cryoem[cuda12]')")
    with pytest.raises(InputError, match=r"^--gpu 0: no usable GPU: CuPy is not installed"):
        usable_devices("0")
    assert usable_devices(None) == ()
    monkeypatch.setattr(backend, "gpu_problem", lambda: None)
    monkeypatch.setattr(backend, "gpu_count", lambda: 2)
    assert usable_devices("") == (0, 1)
    assert usable_devices("1") == (1,)
    with pytest.raises(InputError, match="--gpu 0,2: no usable GPU 2"):
        usable_devices("0,2")


def test_of_several_gpus_one_is_used_and_named(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "gpu_problem", lambda: None)
    monkeypatch.setattr(backend, "gpu_count", lambda: 2)
    for gpu, warned in (("1", False), ("0,1", True)):
        with Job("echo", Options(i="in.star", o=f"Echo/{gpu}/run", gpu=gpu)):
            pass
        assert ("uses one GPU: number 0" in Path(f"Echo/{gpu}/run.err").read_text()) == warned


def test_the_real_machine_without_a_gpu_says_why(options: Options) -> None:
    if backend.gpu_available():
        pytest.skip("this machine has a usable GPU")
    with pytest.raises(InputError, match="no usable GPU: CuPy"), Job("echo", Options(i="in.star", o="x/run", gpu="0")):
        pass

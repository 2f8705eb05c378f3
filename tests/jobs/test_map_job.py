"""What per-micrograph jobs share: workers, order, failures, crashes, resume and abort."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from spa.cli import main, table
from spa.errors import InputError
from spa.io import mrc, star
from spa.io.star import Block, StarFile
from spa.job import Job
from spa.jobs import motioncorr
from spa.kernels import backend
from spa.map_job import Item, _finite, _largest, map_micrographs
from tests.jobs.micrograph_job import Options, process
from tests.movies import make_movie, write_movies_star, write_mrc, write_tiff

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path("Count/job003")
COMMAND = ["each", "--i", "micrographs.star", "--o", f"{OUTPUT}/", "--random_seed", "1"]
SCRIPT = (
    "import sys; from spa.cli import main, table; table.JOBS['each'] = 'tests.jobs.micrograph_job';"
    "sys.exit(main.run(sys.argv[1:]))"
)


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(table.JOBS, "each", "tests.jobs.micrograph_job")
    monkeypatch.chdir(tmp_path)


def write_input(
    texts: Sequence[str], names: Sequence[str] = (), optics: Mapping[str, float] | None = None
) -> list[str]:
    """Micrographs of these texts (none is written for ""), and their STAR file; returns their names."""
    names = list(names) or [f"Import/job001/mics/m{i:04d}.mrc" for i in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if text:
            Path(name).write_text(text)
    values = {
        "rlnVoltage": 300,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnMicrographPixelSize": 1,
    }
    groups = {name: [value, value] for name, value in {**values, **(optics or {})}.items()}
    rows = {"rlnMicrographName": names, "rlnOpticsGroup": [1 + i % 2 for i in range(len(names))]}
    blocks = [
        Block.table("optics", {"rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["first", "second"], **groups}),
        Block.table("micrographs", {**rows, "mine": [f"text{i}" for i in range(len(names))]}),
        Block.pairs("notes", {"author": "me"}),
    ]
    star.write("micrographs.star", StarFile(blocks))
    return list(names)


def calls() -> list[str]:
    """The micrographs that were processed, in order."""
    return [line.split()[0] for line in (OUTPUT / "calls").read_text().splitlines()]


def start(*flags: str) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, *COMMAND, *flags]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(n_calls: int) -> None:
    """Wait until so many micrographs were begun."""
    for _ in range(600):
        if (OUTPUT / "calls").exists() and len(calls()) >= n_calls:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{n_calls} micrographs not begun in 30 s")


@pytest.mark.parametrize("j", [1, 3])
def test_the_table_keeps_order_columns_and_blocks_of_the_input(j: int) -> None:
    names = write_input([*(f"slow {0.03 * (7 - i)}" for i in range(7)), "last"])
    assert main.run([*COMMAND, "--j", str(j), "--factor", "10"]) == 0
    found = star.read(OUTPUT / "counted.star")
    assert found.names == ["optics", "micrographs", "notes"]
    rows = found["micrographs"]
    assert rows.text("rlnMicrographName") == names
    assert rows.text("mine") == [f"text{i}" for i in range(8)]
    assert rows.integers("bytes").tolist() == [10 * len(Path(name).read_text()) for name in names]
    assert rows.text("rlnCtfImage") == [f"Count/job003/mics/m{i:04d}.txt" for i in range(8)]
    assert found["optics"].floats("rlnMicrographBinning").tolist() == [600, 600]
    assert found["optics"].text("rlnOpticsGroupName") == ["first", "second"]
    processes = {line.split()[1] for line in (OUTPUT / "calls").read_text().splitlines()}
    assert len(processes) == j
    assert (str(os.getpid()) in processes) == (j == 1)


@pytest.mark.parametrize("j", [1, 2])
def test_ten_damaged_of_a_hundred_give_ninety_rows_and_a_list_of_ten(
    j: int, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["fine"] * 100
    texts[3:90:20], texts[5:80:30], texts[7:80:60] = ["damaged"] * 5, ["bug"] * 3, [""] * 2
    names = write_input(texts)
    assert main.run([*COMMAND, "--j", str(j)]) == 0
    wrong = [name for name, text in zip(names, texts, strict=True) if text != "fine"]
    assert len(wrong) == 10
    rows = star.read(OUTPUT / "counted.star")["micrographs"]
    assert rows.text("rlnMicrographName") == [name for name in names if name not in wrong]
    failed = star.read(OUTPUT / "counted_failed.star")
    assert failed["micrographs"].text("rlnMicrographName") == wrong
    reasons = failed["micrographs"].text("spaFailure")
    assert reasons[0] == f"{wrong[0]}: truncated: 3 of 7 frames"
    assert reasons[1] == f"{wrong[1]}: ZeroDivisionError: nothing divides by zero"
    assert "found nothing there" in reasons[2]
    shown = capsys.readouterr()
    assert sorted(shown.err.splitlines()) == sorted(f"warning: left out {reason}" for reason in reasons)
    assert "90 of 100 micrographs in Count/job003/counted.star, 10 left out and listed in" in shown.out
    assert (OUTPUT / "run.err").read_text().count("Traceback") == texts.count("bug")
    assert "Traceback" not in shown.err


def test_the_list_of_failed_ones_can_be_the_next_input() -> None:
    names = write_input(["fine", "damaged"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    Path(names[1]).write_text("mended")
    again = ["each", "--i", f"{OUTPUT}/counted_failed.star", "--o", "Count/job004/", "--j", "1"]
    assert main.run(again) == 0
    assert star.read("Count/job004/counted.star")["micrographs"].text("rlnMicrographName") == names[1:]
    assert main.run([*COMMAND, "--j", "1"]) == 0
    assert not (OUTPUT / "counted_failed.star").exists()


def test_a_folder_whose_table_holds_other_micrographs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = write_input(["fine", "damaged", "fine"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    Path(names[1]).write_text("mended")
    before = {path: path.read_bytes() for path in (OUTPUT / "mics").iterdir()}
    table, n_calls = (OUTPUT / "counted.star").read_bytes(), len(calls())
    again = ["each", "--i", f"{OUTPUT}/counted_failed.star", "--o", f"{OUTPUT}/", "--j", "1"]
    capsys.readouterr()
    assert main.run(again) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{OUTPUT}/counted.star: holds 2 images that are not in {OUTPUT}/counted_failed.star, as {names[0]}" in line
    assert "another folder with --o" in line
    assert len(calls()) == n_calls
    assert (OUTPUT / "counted.star").read_bytes() == table
    assert {path: path.read_bytes() for path in (OUTPUT / "mics").iterdir()} == before


def test_an_image_listed_twice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_input(["fine", "fine", "fine"], ["m/a.mrc", "m/b.mrc", "m/./a.mrc"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: micrographs.star: listed more than once, and each time processed: m/a.mrc"
    assert len(star.read(OUTPUT / "counted.star")["micrographs"]) == 3


def test_a_job_of_which_all_fail_fails(capsys: pytest.CaptureFixture[str]) -> None:
    write_input(["damaged", "", "bug"])
    assert main.run([*COMMAND, "--j", "1"]) == 1
    assert "none of the 3 micrographs could be processed; the first: " in capsys.readouterr().err
    assert len(star.read(OUTPUT / "counted_failed.star")["micrographs"]) == 3
    assert not (OUTPUT / "counted.star").exists()


def test_a_micrograph_that_kills_its_process_is_named_and_the_others_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["fine", "exit", "kill once", "fine", "kill", "fine"]
    names = write_input(texts)
    assert main.run([*COMMAND, "--j", "2"]) == 0
    failed = star.read(OUTPUT / "counted_failed.star")["micrographs"]
    assert failed.text("rlnMicrographName") == [names[1], names[4]]
    reasons = failed.text("spaFailure")
    assert reasons[0] == f"{names[1]}: its process ended again: exit status 7"
    assert reasons[1].startswith(f"{names[4]}: its process ended again: killed by SIGKILL")
    rows = star.read(OUTPUT / "counted.star")["micrographs"]
    assert rows.text("rlnMicrographName") == [names[i] for i in (0, 2, 3, 5)]
    assert capsys.readouterr().err.count("to be tried once more, alone") == 3


def test_only_what_is_unfinished_is_done_again() -> None:
    names = write_input(["fine", "damaged", "fine", "fine", "fine", "fine", "fine"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    (OUTPUT / "calls").unlink()
    (OUTPUT / "mics/m0005_picture.png").write_text("torn")
    (OUTPUT / "mics/m0003.txt").unlink()
    (OUTPUT / "mics/m0004_done.json").write_text('{"row": ')
    Path(names[2]).write_text("newer")
    assert main.run([*COMMAND, "--j", "1", "--only_do_unfinished"]) == 0
    assert calls() == names[1:6]
    rows = star.read(OUTPUT / "counted.star")["micrographs"]
    assert rows.text("rlnMicrographName") == [names[i] for i in (0, 2, 3, 4, 5, 6)]
    assert rows.integers("bytes").tolist() == [4, 5, 4, 4, 4, 4]
    assert rows.floats("processed").tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("change", "done_again"),
    [
        (["--factor", "3"], True),
        (["--j", "2"], False),
        (["--random_seed", "5"], False),
        (["--quiet"], False),
    ],
)
def test_finished_rows_hold_for_the_same_options_only(change: list[str], done_again: bool) -> None:
    write_input(["fine", "fine"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    assert main.run([*COMMAND, "--j", "1", *change, "--only_do_unfinished"]) == 0
    assert len(calls()) == (4 if done_again else 2)
    assert main.run([*COMMAND, "--j", "1", *change]) == 0
    assert len(calls()) == (6 if done_again else 4)


def test_finished_rows_hold_for_the_same_optics_and_option_files_only() -> None:
    write_input(["fine"])
    Path("gain.mrc").write_text("gain")
    command = [*COMMAND, "--j", "1", "--only_do_unfinished", "--gain", "gain.mrc"]
    assert main.run(command) == 0
    assert main.run(command) == 0
    assert len(calls()) == 1
    Path("gain.mrc").write_text("another")
    assert main.run(command) == 0
    assert len(calls()) == 2
    write_input(["fine"], optics={"rlnVoltage": 200})
    assert main.run(command) == 0
    assert len(calls()) == 3


def test_a_killed_job_leaves_only_the_unfinished_to_do() -> None:
    names = write_input(["slow 0.2"] * 12)
    job = start("--j", "2")
    wait_for(5)
    job.kill()
    job.wait()
    time.sleep(1.0)  # what was being processed would have finished by now
    done = sorted(path.name[:5] for path in (OUTPUT / "mics").glob("*_done.json"))
    begun = calls()
    assert 0 < len(done) < len(begun) < 12
    (OUTPUT / "mics/.m0011.txt.999999.0123abcd.tmp").touch()
    assert main.run([*COMMAND, "--j", "1", "--only_do_unfinished"]) == 0
    assert calls()[len(begun) :] == [name for name in names if Path(name).stem not in done]
    rows = star.read(OUTPUT / "counted.star")["micrographs"]
    assert rows.text("rlnMicrographName") == names
    assert not list(OUTPUT.rglob(".*.tmp"))


@pytest.mark.parametrize(("j", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_an_interrupted_job_finishes_what_runs_and_says_how_to_go_on(j: int, number: signal.Signals) -> None:
    write_input(["slow 0.4"] * 5)
    job = start("--j", str(j))
    wait_for(j)
    job.send_signal(number)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 3
    assert (OUTPUT / "RELION_JOB_EXIT_ABORTED").exists()
    line = errors.splitlines()[-1]
    command = shlex.split(line.partition("continue with: ")[2])
    assert command == ["spa", *COMMAND, "--j", str(j), "--only_do_unfinished"]
    finished = len(list((OUTPUT / "mics").glob("*_done.json")))
    assert finished == len(calls())
    assert j <= finished < 5
    assert main.run(command[1:]) == 0
    assert len(calls()) == 5
    assert len(star.read(OUTPUT / "counted.star")["micrographs"]) == 5


def test_the_abort_file_stops_the_job_and_continue_takes_it_up() -> None:
    write_input(["slow 0.3"] * 6)
    job = start("--j", "2")
    wait_for(2)
    (OUTPUT / "RELION_JOB_ABORT_NOW").touch()
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 3
    assert "RELION_JOB_ABORT_NOW found" in errors
    assert main.run(["each", "--continue", f"{OUTPUT}/job.json"]) == 0
    assert len(calls()) == 6


def test_rows_of_the_same_name_do_not_share_an_output() -> None:
    names = ["Movies/foo.mrc", "Movies/foo.tiff", "Import/job001/Movies/FOO.mrc", "Movies/foo.mrc", "bar"]
    write_input(["a", "ab", "abc", "a", "abcde"], names)
    assert main.run([*COMMAND, "--j", "1"]) == 0
    rows = star.read(OUTPUT / "counted.star")["micrographs"]
    outputs = rows.text("rlnCtfImage")
    assert len({output.lower() for output in outputs}) == 5
    assert outputs[4] == f"{OUTPUT}/bar.txt"
    assert [int(Path(output).read_text()) for output in outputs] == [1, 2, 3, 1, 5]


def test_outputs_beside_the_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_input(["fine"], ["Movies/foo.mrc"])
    assert main.run(["each", "--i", "micrographs.star", "--o", "./", "--j", "1"]) == 1
    assert "outputs would lie beside the images" in capsys.readouterr().err


def test_progress_is_told_in_the_log() -> None:
    write_input(["fine"] * 30)
    assert main.run([*COMMAND, "--j", "1", "--quiet"]) == 0
    lines = [line for line in (OUTPUT / "run.out").read_text().splitlines() if "minutes left" in line]
    assert len(lines) == 10
    assert lines[-1].startswith("30 of 30 micrographs; ")
    assert lines[-1].endswith(" a second, 0.0 minutes left")


def test_a_value_that_is_no_number_never_reaches_the_table() -> None:
    assert _finite("x", 2.5) == 2.5
    with pytest.raises(InputError, match="rlnDefocusU came out as nan"):
        _finite("rlnDefocusU", float("nan"))


def test_a_kept_row_without_a_column_of_the_others_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_input(["fine", "fine"])
    assert main.run([*COMMAND, "--j", "1"]) == 0
    kept = OUTPUT / "mics/m0001_done.json"
    record = json.loads(kept.read_text())
    del record["row"]["bytes"]
    kept.write_text(json.dumps(record))
    assert main.run([*COMMAND, "--j", "1", "--only_do_unfinished"]) == 1
    assert "row 2: an earlier version kept no bytes; run without --only_do_unfinished" in capsys.readouterr().err


def test_the_largest_micrograph_decides_how_many_fit() -> None:
    items = [Item(i, {}, {}, Path(f"{i}.mrc"), str(i), 1) for i in range(3)]

    def memory(item: Item) -> int:
        if item.number == 1:
            raise InputError("truncated")
        return 10 + item.number

    assert _largest(memory, items) == 12
    assert _largest(memory, items[1:2]) == 0


def test_a_movie_takes_as_much_memory_as_its_header_says() -> None:
    frames = np.ones((5, 30, 40), dtype=np.uint8)
    write_tiff("a.tif", frames)
    write_mrc("b.mrcs", frames)
    Path("c.mrc.gz").write_bytes(gzip.compress(Path("b.mrcs").read_bytes()))
    options = motioncorr.Options(i="movies.star", j=1)
    for name in ("a.tif", "b.mrcs", "c.mrc.gz"):
        item = Item(0, {"rlnMicrographMovieName": name}, {}, Path(name), "a", 1)
        assert motioncorr._memory(options, item) == 3 * 4 * 5 * 30 * 40


def test_a_movie_called_as_the_gain_does_not_replace_it() -> None:
    movie = make_movie(size=256, n_frames=4, contrast=0.3, seed=13)
    write_tiff("gain.tiff", movie.frames)
    gain = np.random.default_rng(0).uniform(0.9, 1.1, (256, 256)).astype(np.float32)
    write_mrc("reference.mrc", gain)
    write_movies_star("movies.star", ["gain.tiff"])
    flags = ["--gainref", "reference.mrc", "--gain_rot", "2", "--j", "1"]
    assert main.run(["motioncorr", "--i", "movies.star", "--o", "out/", *flags]) == 0
    np.testing.assert_array_equal(mrc.read("out/gain.mrc")[0][0], gain[::-1, ::-1])
    (name,) = star.read("out/corrected_micrographs.star")["micrographs"].text("rlnMicrographName")
    assert name != "out/gain.mrc"
    assert mrc.read(name)[0].mean() == pytest.approx(movie.frames.sum(axis=0).mean(), rel=0.02)


def test_no_more_workers_run_than_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_input(["fine"] * 3)
    monkeypatch.setattr("spa.map_job.available_memory", lambda: 25)
    options = Options(i="micrographs.star", o="Count/job005/", j=4, quiet=True, random_seed=1)
    with Job("each", options) as job:
        table = map_micrographs(
            job, options, process, block="micrographs", column="rlnMicrographName", output="x.star", memory=lambda _: 10
        )
    assert table.text("rlnMicrographName") == names
    processes = {line.split()[1] for line in Path("Count/job005/calls").read_text().splitlines()}
    assert 1 <= len(processes) <= 2
    assert "2 at a time, for the memory that is free" in Path("Count/job005/run.out").read_text()


def test_such_jobs_use_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    write_input(["fine"])
    monkeypatch.setattr(backend, "gpu_problem", lambda: None)
    monkeypatch.setattr(backend, "gpu_count", lambda: 2)
    with Job("each", Options(i="micrographs.star", o="Count/job006/", gpu="", quiet=True)) as job:
        assert job.devices == (0, 1)
    assert Path("Count/job006/run.err").read_text() == ""

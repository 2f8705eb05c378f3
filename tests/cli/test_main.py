"""The command line: help, errors in one line, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spa.cli import main, table
from spa.cli.parser import IGNORED_FLAGS, nearest
from spa.options import bounds_text, specs


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A command line of the test job, in an empty folder with one input file."""
    monkeypatch.setitem(table.JOBS, "echo", "tests.cli.echo_job")
    monkeypatch.chdir(tmp_path)
    Path("in.star").write_text("data_\n")
    return ["echo", "--i", "in.star", "--o", "Echo/job001/run", "--random_seed", "7"]


def test_help_names_the_jobs_in_order_without_importing_numpy() -> None:
    script = (
        "import sys; from spa.cli.main import run; status = run(['--help']);"
        "sys.exit(status or ('numpy' in sys.modules) or ('numba' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    places = [done.stdout.index(f"  {job} ") for job in table.JOBS]
    assert places == sorted(places)


def test_jobs_are_in_the_order_of_a_project() -> None:
    before = ["simulate", "import", "motioncorr", "ctffind", "pick", "extract", "class2d", "select"]
    after = ["refine3d", "class3d", "mask", "postprocess", "reconstruct", "project", "subtract", "expand", "convert"]
    assert list(table.JOBS) == [*before, *after]


@pytest.mark.parametrize("job", list(table.JOBS))
def test_help_of_each_job_tells_every_flag_with_unit_bounds_and_default(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([job, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for spec in specs(table.load(job).Options):
        for flag in spec.flags:
            assert flag in text
        wanted = [spec.unit, bounds_text(spec.bounds), "required" if spec.required else f"default {spec.default_text}"]
        facts = "; ".join(fact for fact in (wanted[0], wanted[1]) if fact)
        assert f"[{facts}" in text
        assert wanted[2] in text
    for common in ("--j", "--gpu", "--continue", "--random_seed", "--pipeline_control", "--version", "--quiet"):
        assert common in text


@pytest.mark.parametrize("job", list(table.JOBS))
def test_the_summary_is_the_first_line_of_the_module(job: str) -> None:
    assert table.summary(job) == (table.load(job).__doc__ or "").splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--particle_diameters", "3"], "unknown flag --particle_diameters: did you mean --"),
        (["--cunt", "3"], "unknown flag --cunt: did you mean --count?"),
        (["--count", "many"], "--count many: expected a whole number"),
        (["--count", "2.5"], "--count 2.5: expected a whole number"),
        (["--count", "11"], "--count 11: expected 1 to 10 px"),
        (["--angle", "wide"], "--angle wide: expected a number"),
        (["--angle", "nan"], "--angle nan: expected -90 to 90 deg"),
        (["--kind", "odd"], "--kind odd: expected one of plain, fancy"),
        (["--kind", "fancy"], "--kind fancy: expected with --ctf"),
        (["--gpu", "one"], '--gpu one: expected device numbers such as "0", "0,1" or "0:1"'),
        (["--count"], "requires an argument"),
        (["stray"], "stray"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(
    echo: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*echo, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not Path("Echo").exists()


def test_missing_flags_are_all_named(echo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["echo"]) == 2
    assert "required: --i, --o" in capsys.readouterr().err


def test_unknown_job_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["refine3D", "--i", "x"]) == 2
    assert "unknown job refine3D: did you mean refine3d?" in capsys.readouterr().err
    assert main.run(["--versoin"]) == 2
    assert "unknown flag --versoin: did you mean --version?" in capsys.readouterr().err


def test_nearest_is_the_closest_in_spelling() -> None:
    known = ["--offset_range", "--offset_step", "--oversampling"]
    assert nearest("--offset_rage", known) == "--offset_range"
    assert nearest("--over_sampling", known) == "--oversampling"


@pytest.mark.parametrize(
    ("end", "status", "exit_file", "message"),
    [
        ("well", 0, "SUCCESS", ""),
        ("input", 1, "FAILURE", "error: particles.star: data_particles, row 3, column rlnDefocusU: expected a number"),
        ("disk", 1, "FAILURE", "error: out.mrc: No space left on device"),
        ("abort", 3, "ABORTED", "continue with: spa echo --continue Echo/job001/run_it003_optimiser.star"),
        ("bug", 70, "FAILURE", "ZeroDivisionError: nothing divides by zero (traceback in Echo/job001/run.err)"),
    ],
)
def test_each_end_has_its_status_file_and_line(
    echo: list[str], end: str, status: int, exit_file: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("Echo/job001").mkdir(parents=True)
    for leftover in ("SUCCESS", "FAILURE", "ABORTED"):
        Path(f"Echo/job001/RELION_JOB_EXIT_{leftover}").touch()
    assert main.run([*echo, "--end", end]) == status
    assert [path.name for path in Path("Echo/job001").glob("RELION*")] == [f"RELION_JOB_EXIT_{exit_file}"]
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == (0 if end == "well" else 1)
    assert ("Traceback" in Path("Echo/job001/run.err").read_text()) == (end in ("bug", "disk"))


def test_flags_reach_the_job(echo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--count 5 --angle -12.5 --name a --name b --kind fancy --no_norm --ctf"
    assert main.run([*echo, *flags.split()]) == 0
    assert capsys.readouterr().out == "5 -12.5 ('a', 'b') fancy False True\n"
    assert main.run([*echo, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("Echo/job001/run.out").read_text().splitlines()[-1] == "3 None () plain True False"


def test_relion_flags_that_change_nothing_give_one_warning(echo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [word for flag, valued in IGNORED_FLAGS.items() for word in ([flag, "3"] if valued else [flag])]
    assert main.run([*echo, *flags]) == 0
    shown = capsys.readouterr()
    assert shown.out == "3 None () plain True False\n"
    assert len(shown.err.splitlines()) == 1
    assert all(flag in shown.err for flag in IGNORED_FLAGS)


def test_continue_takes_the_recorded_options_and_the_given_ones_win(
    echo: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*echo, "--count", "5", "--name", "a", "--no_norm"]) == 0
    capsys.readouterr()
    assert main.run(["echo", "--continue", "Echo/job001/job.json", "--count", "6"]) == 0
    assert capsys.readouterr().out == "6 None ('a',) plain False False\n"
    assert json.loads(Path("Echo/job001/job.json").read_text())["seed"] == 7
    assert main.run(["echo", "--continue", "nothing.star", "--i", "in.star", "--o", "Echo/job002/run"]) == 1
    assert capsys.readouterr().err == "error: nothing.star: cannot be read: No such file or directory\n"


def test_version_of_the_program_and_of_a_job(echo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert main.run(["echo", "--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("spa ")


def test_the_console_script_ends_with_the_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spa.cli.main", "mask", "--i", str(tmp_path / "no.mrc"), "--o"]
    done = subprocess.run([*command, str(tmp_path / "mask.mrc")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/no.mrc: cannot be read: No such file or directory\n"


def test_a_pattern_that_the_shell_has_expanded_is_told_from_a_stray_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"movie{i}.tiff" for i in range(3)]
    for name in names:
        Path(name).touch()
    assert main.run(["import", "--i", *names, "--odir", "Import"]) == 2
    assert "put a pattern in quotes, as '*.tiff'" in capsys.readouterr().err
    assert main.run(["import", "--i", "movie0.tiff", "nothing", "--odir", "Import"]) == 2
    assert "nothing" in capsys.readouterr().err

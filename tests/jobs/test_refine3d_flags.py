"""Every flag of `spa refine3d` changes what its name says, seen in the files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.fourier import low_pass
from spa.fsc import fsc
from spa.io import mrc, star
from tests.jobs import refinement
from tests.jobs.refinement import BOX, MAPS, PIXEL_SIZE, changed, command, correlation, read, said, simulate

Short = Callable[..., Path]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with simulated particles."""
    folder = tmp_path_factory.mktemp("project")
    with chdir(folder):
        simulate("Sim", "--nr_particles 60 --snr 2")
    return folder


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def short(project: Path) -> Callable[..., Path]:
    """Refine in two coarse iterations with some more flags; returns the folder. The same flags are run once."""
    done: dict[tuple[str, str, str], Path] = {}

    def ran(flags: str = "", data: str = "Sim", switches: str = refinement.SWITCHES) -> Path:
        key = (flags, data, switches)
        if key not in done:
            folder = project / f"Short{len(done):03d}"
            coarse = f"--healpix_order 0 --offset_range 1 {flags}"
            with refinement.two_iterations():
                assert run(command(data, folder / "run", coarse, switches)) == 0
            done[key] = folder
        return done[key]

    return ran


def test_sym_makes_the_map_symmetric(short: Short) -> None:
    def half_turn(folder: Path) -> float:
        volume = read(folder / "run_class001.mrc")
        return correlation(volume[1:, 1:, 1:], volume[1:, :0:-1, :0:-1])

    assert half_turn(short()) < 0.9
    assert half_turn(short("--sym C2")) > 0.999


def test_ini_high_limits_the_first_iteration(short: Short) -> None:
    def first_line(folder: Path) -> str:
        return next(line for line in said(folder).splitlines() if line.startswith("iteration 1:"))

    # resolution shell 3 and the margin of ten beyond it
    assert "current size 26," in first_line(short("--ini_high 60"))
    assert "current size 30," in first_line(short())


def test_a_reference_on_another_grey_scale_is_noticed_or_told(short: Short, tmp_path: Path) -> None:
    mrc.write_volume(tmp_path / "bright.mrc", 50 * read("Sim/reference.mrc"), PIXEL_SIZE)
    noticed, told = short(f"--ref {tmp_path}/bright.mrc"), short(f"--ref {tmp_path}/bright.mrc --firstiter_cc")
    assert "grey scale is" in said(noticed)
    assert "grey scale is" not in said(told)
    assert "grey scale is" not in said(short())
    for name in MAPS:
        np.testing.assert_array_equal(read(noticed / name), read(told / name))
    assert correlation(read(told / MAPS[0]), read(short() / MAPS[0])) > 0.9
    assert not np.array_equal(read(short("--firstiter_cc") / MAPS[0]), read(short() / MAPS[0]))


def test_zero_mask_takes_the_surroundings_out_of_the_scores(short: Short) -> None:
    def surprise(folder: Path) -> float:
        return -float(star.read(folder / "run_it001_data.star")["particles"].floats("rlnLogLikeliContribution").mean())

    whole = short(switches=refinement.SWITCHES.replace("--zero_mask", ""))
    masked, narrow = short(), short("--particle_diameter 110")
    assert surprise(narrow) < surprise(masked) < surprise(whole)


def outside_sphere(volume: np.ndarray) -> np.ndarray:
    return volume[refinement.sphere() == 0]


def test_flatten_solvent_empties_the_map_outside_the_sphere(short: Short) -> None:
    plain = short(switches=refinement.SWITCHES.replace("--flatten_solvent", ""))
    assert np.abs(outside_sphere(read(plain / MAPS[0]))).max() > 0
    assert np.abs(outside_sphere(read(short() / MAPS[0]))).max() == 0


def test_solvent_mask_takes_the_place_of_the_sphere(short: Short, project: Path) -> None:
    mask = refinement.sphere()
    mask[: BOX // 2] = 0
    mrc.write_volume(project / "half_mask.mrc", mask, PIXEL_SIZE)
    volume = read(short("--solvent_mask half_mask.mrc") / MAPS[0])
    assert np.abs(volume[mask == 0]).max() == 0
    assert np.abs(volume[mask > 0.5]).max() > 0


def test_norm_finds_the_noise_level_of_each_image(short: Short) -> None:
    levels = iter((1.0, 2.0, 1.0, 2.0))
    changed("Sim", "Loud", lambda images: images * next(levels))
    plain, corrected = short(data="Loud"), short("--norm", data="Loud")
    assert set(star.read(plain / "run_data.star")["particles"].floats("rlnNormCorrection").tolist()) == {1.0}
    table = star.read(corrected / "run_data.star")["particles"]
    found = table.floats("rlnNormCorrection")
    loud = np.array(["mic00002" in name or "mic00004" in name for name in table.text("rlnImageName")])
    assert found[loud].mean() / found[~loud].mean() == pytest.approx(2, rel=0.1)
    assert found.mean() == pytest.approx(1, abs=1e-3)


def test_scale_finds_the_signal_of_each_micrograph(short: Short) -> None:
    true = {"mic00001": 1.3, "mic00002": 0.7, "mic00003": 1.3, "mic00004": 0.7}
    refinement.with_signal_levels("Sim", "Uneven", true, snr=0.5)
    plain, corrected = short(data="Uneven"), short("--scale", data="Uneven")
    for folder, ratio in ((plain, 1.0), (corrected, 1.3 / 0.7)):
        for name in ("run_model.star", "run_it002_half2_model.star"):
            groups = star.read(folder / name)["model_groups"]
            assert [n.split("/")[-1].split(".")[0] for n in groups.text("rlnGroupName")] == list(true)
            found = groups.floats("rlnGroupScaleCorrection")
            assert found[[0, 2]].mean() / found[[1, 3]].mean() == pytest.approx(ratio, rel=0.15)


def test_low_resol_join_halves_shares_the_low_frequencies(short: Short) -> None:
    def first_fsc(folder: Path) -> np.ndarray:
        return fsc(*(read(folder / f"run_it001_half{h}_class001.mrc") for h in (1, 2)))

    limit = int(BOX * PIXEL_SIZE / 25)
    apart, joined = first_fsc(short()), first_fsc(short("--low_resol_join_halves 25"))
    assert (joined[1 : limit - 1] > 0.995).all()
    assert (apart[1 : limit - 1] < joined[1 : limit - 1]).all()
    assert (joined[limit + 4 : -1] < 0.9).all()


def test_pad_is_the_padding_of_the_transforms(short: Short) -> None:
    folder = short("--pad 1")
    assert star.read(folder / "run_model.star")["model_general"].get_float("rlnPaddingFactor") == 1
    assert 0.9 < correlation(read(folder / MAPS[0]), read(short() / MAPS[0])) < 1 - 1e-6


def test_sampling_flags_set_the_steps(short: Short) -> None:
    def steps(folder: Path) -> list[str]:
        lines = [line for line in said(folder).splitlines() if line.startswith("iteration 1:")]
        return lines[0].split("search to ")[1].split(" Å")[0].split()

    coarse, fine = steps(short()), steps(short("--oversampling 2"))
    assert coarse[0] == "30.00°"
    assert fine[0] == "15.00°"
    assert steps(short("--healpix_order 1"))[0] == "15.00°"
    assert float(steps(short("--offset_step 0.5"))[1]) == pytest.approx(float(coarse[1]) / 2, abs=0.006)
    sampling = star.read(short("--oversampling 2") / "run_it001_sampling.star")["sampling_general"]
    assert sampling.get_float("rlnPsiStep") == 360 / (6 * 2 ** sampling.get_integer("rlnHealpixOrder"))


def test_offset_range_bounds_the_shifts_found(short: Short) -> None:
    simulate("Shifted", "--nr_particles 40 --snr 2 --sigma_offset 15")

    def largest(folder: Path) -> float:
        table = star.read(folder / "run_it001_data.star")["particles"]
        return float(np.hypot(table.floats("rlnOriginXAngst"), table.floats("rlnOriginYAngst")).max()) / PIXEL_SIZE

    narrow, wide = short(data="Shifted"), short("--offset_range 6", data="Shifted")
    assert largest(narrow) < 2.5
    assert 4 < largest(wide) < 7.5
    errors = [
        np.median(refinement.shift_errors(f / "run_data.star", "Shifted/truth_particles.star")) for f in (narrow, wide)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_tau2_fudge_lets_weak_frequencies_through(short: Short) -> None:
    def strength(folder: Path) -> float:
        volume = read(folder / "run_it001_half1_class001.mrc")
        return float((volume - low_passed(volume)).std())

    def low_passed(volume: np.ndarray) -> np.ndarray:
        return np.asarray(low_pass(volume, PIXEL_SIZE, 20.0))

    weak, plain, strong = (strength(short(f)) for f in ("--tau2_fudge 0.1", "", "--tau2_fudge 10"))
    assert weak < 0.8 * plain
    assert strong > 1.1 * plain


def test_the_seed_decides_the_halves_and_the_result(short: Short) -> None:
    first, again, other = short(), short("--random_seed 1"), short("--random_seed 2")
    for name in MAPS:
        np.testing.assert_array_equal(read(first / name), read(again / name))
        assert not np.array_equal(read(first / name), read(other / name))
    halves = [star.read(f / "run_data.star")["particles"].text("rlnRandomSubset") for f in (first, again, other)]
    assert halves[0] == halves[1]
    assert halves[0] != halves[2]


def test_without_ctf_the_user_is_warned_and_the_map_differs(short: Short) -> None:
    folder = short(switches=refinement.SWITCHES.replace("--ctf", ""))
    assert "--ctf was not given" in (folder / "run.err").read_text()
    assert "--ctf was not given" not in (short() / "run.err").read_text()
    truth = read("Sim/truth_map.mrc")
    assert correlation(read(folder / MAPS[0]), truth) < correlation(read(short() / MAPS[0]), truth)

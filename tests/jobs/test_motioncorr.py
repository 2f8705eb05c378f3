"""`spa motioncorr`: what it writes for movies of known motion, and what it refuses."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star
from spa.map_job import Item
from spa.motion_model import LocalModel
from tests.movies import MadeMovie, grid, make_movie, write_movies_star, write_mrc, write_tiff

PIXEL = 1.5


@pytest.fixture(scope="session")
def movie() -> MadeMovie:
    return make_movie(size=512, n_frames=12, drift=1.0, doming=4.0, contrast=0.35, damage=12.0, counts=3, seed=11)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def motioncorr(*arguments: object) -> int:
    return run(["motioncorr", "--o", "out/", "--j", "1", "--random_seed", "1", *map(str, arguments)])


def written(frames: np.ndarray, name: str = "movies/a.tiff", **optics: float) -> None:
    write_tiff(name, frames)
    write_movies_star("movies.star", [name], PIXEL, **optics)


def image(name: str) -> np.ndarray:
    return mrc.read(name)[0][0]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def fine(image: np.ndarray) -> np.ndarray:
    """Only what lies between 15 and 4 Å, where damage and noise tell."""
    s = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])) / PIXEL
    return np.asarray(np.fft.irfft2(np.fft.rfft2(image) * ((s > 1 / 15) & (s < 1 / 4)), s=image.shape))


def left_over(movie: MadeMovie, path: str) -> float:
    """Motion in Å that the written shifts and model leave over the field."""
    tables = star.read(path)
    shifts = tables["global_shift"]
    left = movie.at(grid()) + np.stack([shifts.floats(f"rlnMicrographShift{axis}") for axis in "XY"], axis=1)[:, None]
    if "local_motion_model" in tables:
        table = tables["local_motion_model"]
        assert table.integers("rlnMotionModelCoeffsIdx").tolist() == list(range(36))
        model = LocalModel(table.floats("rlnMotionModelCoeff").reshape(2, 18))
        left = left + model.at(np.arange(len(left), dtype=float), grid())
    left = left - left.mean(axis=0)
    return float(np.sqrt((left**2).sum(axis=-1).mean())) * PIXEL


def test_a_movie_becomes_micrographs_a_star_file_and_a_picture(folder, movie):
    written(movie.frames)
    arguments = ["--dose_weighting", "--save_noDW", "--dose_per_frame", 2, "--grouping_for_ps", 3, "--ps_size", 256]
    assert motioncorr("--i", "movies.star", "--patch_x", 5, "--patch_y", 5, *arguments) == 0
    tables = star.read("out/corrected_micrographs.star")
    row = tables["micrographs"]
    assert tables["optics"].floats("rlnMicrographPixelSize").tolist() == [PIXEL]
    assert row.text("rlnMicrographName") == ["out/movies/a.mrc"]
    assert row.text("rlnMicrographNameNoDW") == ["out/movies/a_noDW.mrc"]
    assert row.text("rlnCtfPowerSpectrum") == ["out/movies/a_PS.mrc"]
    assert row.text("rlnMicrographMetadata") == ["out/movies/a.star"]
    assert row.integers("spaMotionFound").tolist() == [1]
    path = np.hypot(*np.diff(movie.at(grid()).mean(axis=1), axis=0).T).sum() * PIXEL
    total, early, late = (row.floats(f"rlnAccumMotion{part}")[0] for part in ("Total", "Early", "Late"))
    assert total == pytest.approx(path, rel=0.1)
    assert early + late == pytest.approx(total)
    assert 0 < early < late
    weighted, plain = image("out/movies/a.mrc"), image("out/movies/a_noDW.mrc")
    assert plain.mean() == pytest.approx(movie.frames.sum(axis=0).mean(), rel=1e-3)
    assert correlation(fine(weighted), fine(movie.specimen)) > correlation(fine(plain), fine(movie.specimen)) + 0.02
    assert correlation(plain, movie.specimen) > correlation(movie.frames.sum(axis=0), movie.specimen) + 0.05
    assert image("out/movies/a_PS.mrc").shape == (256, 256)
    assert mrc.info("out/movies/a.mrc").pixel_size == pytest.approx(PIXEL)
    assert Path("out/movies/a_shifts.png").read_bytes().startswith(b"\x89PNG")
    general = star.read("out/movies/a.star")["general"]
    assert [general.get_integer(f"rlnImageSize{axis}") for axis in "XYZ"] == [512, 512, 12]
    assert general.get_integer("rlnMotionModelVersion") == 1


def test_patches_leave_at_most_half_of_what_whole_frames_leave(folder, movie):
    written(movie.frames)
    assert motioncorr("--i", "movies.star") == 0
    whole = left_over(movie, "out/movies/a.star")
    assert motioncorr("--i", "movies.star", "--patch_x", 4, "--patch_y", 5) == 0
    assert left_over(movie, "out/movies/a.star") < 0.5 * whole


def test_gain_defects_and_hot_pixels_are_mended(folder):
    movie = make_movie(size=320, n_frames=6, drift=0.5, contrast=0.3, counts=8, seed=12)
    gain = np.random.default_rng(0).uniform(0.5, 1.5, movie.specimen.shape).astype(np.float32)
    gain[:, 100:103] = 0
    frames = np.rint(movie.frames / np.where(gain > 0, gain, 1)).astype(np.uint16)
    frames[:, 200, 50], frames[:, 10:14, 220:230] = 900, 500
    Path("defects.txt").write_text("220 10 10 4\n")
    write_mrc("gain.mrc", np.rot90(gain[:, ::-1], 3))  # undone by three quarter turns and a flip
    turned = ["--gainref", "gain.mrc", "--gain_rot", 3, "--gain_flip", 2]
    written(frames)
    assert motioncorr("--i", "movies.star", *turned, "--defect_file", "defects.txt") == 0
    got = image("out/movies/a.mrc")
    assert correlation(got, movie.specimen) > 0.5
    assert got.max() < 3.5 * got.mean()
    assert got[:, 100:103].mean() == pytest.approx(got.mean(), rel=0.05)
    tables = star.read("out/movies/a.star")
    assert tables["hot_pixels"].floats("rlnCoordinateX").tolist() == [50]
    assert tables["hot_pixels"].floats("rlnCoordinateY").tolist() == [200]
    assert tables["general"].get_text("rlnMicrographGainName") == "out/gain.mrc"
    np.testing.assert_array_equal(image("out/gain.mrc"), gain)


def test_mrc_and_tiff_of_the_same_frames_give_the_same(folder):
    movie = make_movie(size=256, n_frames=6, drift=1.0, contrast=0.3, seed=13)
    write_tiff("a.tif", movie.frames)
    mrc.write_stack("b.mrcs", movie.frames, PIXEL)
    mrc.write_stack("c.mrcs", movie.frames, PIXEL, float16=True)
    write_movies_star("movies.star", ["a.tif", "b.mrcs", "c.mrcs"], PIXEL)
    assert motioncorr("--i", "movies.star") == 0
    first = image("out/a.mrc")
    for other in "bc":
        np.testing.assert_allclose(image(f"out/{other}.mrc"), first, atol=1e-3)


def test_binning_that_does_not_divide(folder):
    movie = make_movie(size=320, n_frames=6, drift=0.5, contrast=0.3, counts=8, seed=12)
    written(movie.frames)
    assert motioncorr("--i", "movies.star", "--bin_factor", 1.7) == 0
    got = image("out/movies/a.mrc")
    assert got.shape == (188, 188)
    assert mrc.info("out/movies/a.mrc").pixel_size == pytest.approx(1.7 * PIXEL)
    assert got.mean() == pytest.approx(movie.frames.sum(axis=0).mean(), rel=0.01)
    optics = star.read("out/corrected_micrographs.star")["optics"]
    assert optics.floats("rlnMicrographPixelSize")[0] == pytest.approx(1.7 * PIXEL)


def test_frames_that_do_not_correlate_are_summed_as_they_are_and_named(folder, capsys):
    frames = np.random.default_rng(0).poisson(2, (8, 256, 256)).astype(np.uint8)
    written(frames)
    assert motioncorr("--i", "movies.star", "--patch_x", 3, "--patch_y", 3) == 0
    assert star.read("out/corrected_micrographs.star")["micrographs"].integers("spaMotionFound").tolist() == [0]
    assert "out/movies/a.mrc" in capsys.readouterr().err
    np.testing.assert_allclose(image("out/movies/a.mrc"), frames.sum(axis=0), atol=1e-3)


def test_a_frame_that_the_camera_lost_is_named_and_its_shift_follows_its_neighbours(folder, capsys):
    movie = make_movie(size=256, n_frames=10, drift=1.0, contrast=0.4, seed=13)
    movie.frames[4] = 0
    written(movie.frames)
    assert motioncorr("--i", "movies.star") == 0
    assert star.read("out/corrected_micrographs.star")["micrographs"].integers("spaBlankFrames").tolist() == [1]
    assert "1 of 1 micrographs with frames of one value" in capsys.readouterr().err
    assert left_over(movie, "out/movies/a.star") < 0.6


def test_bad_movies_are_left_out_with_their_reason(folder):
    movie = make_movie(size=256, n_frames=6, drift=1.0, contrast=0.3, seed=13)
    names = [f"m/{name}.tif" for name in ("good", "cut", "flat", "short", "absent", "other")]
    write_tiff(names[0], movie.frames)
    write_tiff(names[1], movie.frames)
    Path(names[1]).write_bytes(Path(names[1]).read_bytes()[:-5000])
    write_tiff(names[2], np.full_like(movie.frames, 3))
    write_tiff(names[3], movie.frames[:2])
    write_tiff(names[5], movie.frames[:, :200])
    write_mrc("gain.mrc", np.ones((256, 256), dtype=np.float32))
    write_movies_star("movies.star", names, PIXEL)
    assert motioncorr("--i", "movies.star", "--gainref", "gain.mrc") == 0
    kept = star.read("out/corrected_micrographs.star")["micrographs"].text("rlnMicrographName")
    assert kept == ["out/m/good.mrc"]
    failed = star.read("out/corrected_micrographs_failed.star")["movies"]
    reasons = dict(zip(failed.text("rlnMicrographMovieName"), failed.text("spaFailure"), strict=True))
    assert list(reasons) == names[1:]
    for name, reason in zip(
        names[1:],
        ("truncated", "found 18 in every pixel", "at least 3 frames", "nothing there", "gain reference of 256"),
        strict=True,
    ):
        assert reason in reasons[name]
    assert not list(Path("out/m").glob("cut*"))


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("given", "optics", "reason"),
    [
        (["--dose_weighting"], {}, "--dose_per_frame"),
        (["--dose_weighting", "--dose_per_frame", "1"], {"voltage": 3.0}, "rlnVoltage"),
        (["--dose_weighting", "--dose_per_frame", "1"], {"voltage": 250.0}, "100, 200 and 300 kV"),
        (["--patch_x", "5"], {}, "--patch_y 1"),
        (["--patch_x", "40", "--patch_y", "40"], {}, "too small for 40 x 40 patches"),
        (["--gainref", "absent.mrc"], {}, "absent.mrc"),
        (["--gainref", "."], {}, "found a folder"),
        (["--gainref", "movies.star"], {}, "error: movies.star: expected an MRC file"),
        (["--defect_file", "bad.txt"], {}, "bad.txt, line 1"),
        (["--bin_factor", "8"], {}, "--bin_factor 8"),
        (["--eer_upsampling", "3"], {}, "--eer_upsampling"),
    ],
)
def test_wrong_input_is_a_line(folder, capsys, given, optics, reason):
    Path("bad.txt").write_text("1 2 3\n")
    written(make_movie(size=256, n_frames=4, contrast=0.3, seed=13).frames, **optics)
    assert motioncorr("--i", "movies.star", *given) in (1, 2)
    assert reason in refusal(capsys)


def test_a_missing_pixel_size_is_a_line(folder, capsys):
    written(make_movie(size=256, n_frames=4, contrast=0.3, seed=13).frames)
    tables = star.read("movies.star")
    tables["optics"].drop("rlnMicrographOriginalPixelSize")
    star.write("movies.star", tables)
    assert motioncorr("--i", "movies.star") == 1
    expected = "movies.star: data_optics: no pixel size, expected a column rlnMicrographOriginalPixelSize"
    assert capsys.readouterr().err == f"error: {expected}\n"


def test_a_row_does_not_depend_on_the_others(folder):
    movie = make_movie(size=256, n_frames=6, drift=1.0, contrast=0.3, seed=13)
    write_tiff("a.tif", movie.frames)
    job = importlib.import_module("spa.jobs.motioncorr")
    optics = {"rlnMicrographOriginalPixelSize": "1.5", "rlnVoltage": "300"}
    item = Item(0, {"rlnMicrographMovieName": "a.tif"}, optics, Path("a.tif"), "a", 7)
    options = job.Options(i="movies.star", o="one", j=1)
    assert job.process(item, options) == job.process(item, options)

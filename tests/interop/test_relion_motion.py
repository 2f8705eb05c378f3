"""Motion correction against relion_run_motioncorr on the same movies: shifts, sums, orientation, column names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, star
from spa.io.movie import open_movie
from spa.motion_model import LocalModel
from tests.eer import write_eer
from tests.movies import grid, make_movie, write_movies_star, write_mrc, write_tiff

PIXEL = 1.5
COMMON = ["--dose_weighting", "--save_noDW", "--dose_per_frame", "1.5", "--grouping_for_ps", "3", "--ps_size", "256"]


def both(relion: Path, arguments: list[str]) -> None:
    """Run both programs on movies.star: outputs in ours/ and theirs/."""
    given = ["--i", "movies.star", *arguments]
    assert run(["motioncorr", *given, "--o", "ours/", "--j", "1", "--random_seed", "1"]) == 0
    program = [str(relion / "relion_run_motioncorr"), *given, "--o", "theirs/", "--use_own", "--j", "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def track(folder: str) -> np.ndarray:
    table = star.read(f"{folder}/m.star")["global_shift"]
    shifts = np.stack([table.floats("rlnMicrographShiftX"), table.floats("rlnMicrographShiftY")], axis=1)
    return shifts - shifts.mean(axis=0)


def whole(folder: str, places: np.ndarray) -> np.ndarray:
    """Corrections (n_frames, n_places, 2) by shifts and local model."""
    table = star.read(f"{folder}/m.star")["local_motion_model"]
    model = LocalModel(table.floats("rlnMotionModelCoeff").reshape(2, 18))
    shifts = track(folder)
    total = shifts[:, None] + model.at(np.arange(len(shifts), dtype=float), places)
    return np.asarray(total - total.mean(axis=0))


def image(name: str) -> np.ndarray:
    return mrc.read(name)[0][0]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shifts_sums_and_columns_agree(folder, relion):
    movie = make_movie(size=768, n_frames=12, drift=1.0, doming=4.0, contrast=0.35, counts=3, seed=3)
    gain = np.random.default_rng(0).uniform(0.7, 1.3, movie.specimen.shape).astype(np.float32)
    write_tiff("m.tif", np.rint(movie.frames * 10 / gain).astype(np.uint16))
    write_mrc("gain.mrc", np.rot90(gain[::-1], 1))
    write_movies_star("movies.star", ["m.tif"], PIXEL)
    both(
        relion,
        [*COMMON, "--patch_x", "5", "--patch_y", "5", "--gainref", "gain.mrc", "--gain_rot", "1", "--gain_flip", "1"],
    )

    assert np.abs(track("ours") - track("theirs")).max() < 0.5
    truth = -movie.at(grid())
    truth = truth - truth.mean(axis=0)
    errors = {
        folder: np.sqrt(((whole(folder, grid()) - truth) ** 2).sum(axis=-1).mean()) for folder in ("ours", "theirs")
    }
    assert errors["ours"] < 0.2
    assert errors["ours"] < errors["theirs"]

    for name, least in (("m.mrc", 0.97), ("m_noDW.mrc", 0.95), ("m_PS.mrc", 0.99)):
        ours, theirs = image(f"ours/{name}"), image(f"theirs/{name}")
        assert ours.shape == theirs.shape
        compared = np.zeros(ours.shape, bool)
        compared[32:-32, 32:-32] = True
        if name == "m_PS.mrc":
            # ours leaves out the zero frequency; farther out the two alignments differ
            radius = np.hypot(*(np.indices(ours.shape) - len(ours) // 2))
            compared = (radius > 1) & (radius < 60)
        assert correlation(ours[compared], theirs[compared]) > least, name
        assert ours[compared].mean() == pytest.approx(theirs[compared].mean(), rel=0.05), name
        pixel_sizes = [mrc.info(f"{folder}/{name}").pixel_size for folder in ("ours", "theirs")]
        assert pixel_sizes[0] == pytest.approx(pixel_sizes[1], rel=1e-3)

    for file in ("m.star", "corrected_micrographs.star"):
        ours, theirs = star.read(f"ours/{file}"), star.read(f"theirs/{file}")
        for block in theirs:
            assert set(block.columns) <= set(ours[block.name].columns), (file, block.name)
    ours, theirs = (star.read(f"{folder}/m.star")["general"] for folder in ("ours", "theirs"))
    for column in set(theirs.columns) - {"rlnMicrographGainName", "rlnMicrographMovieName"}:
        assert ours.get_float(column) == pytest.approx(theirs.get_float(column)), column


def test_relion_lists_our_tables(folder, relion):
    movie = make_movie(size=256, n_frames=6, drift=1.0, contrast=0.4, seed=13)
    write_tiff("m.tif", movie.frames)
    write_movies_star("movies.star", ["m.tif"], PIXEL)
    assert run(["motioncorr", "--i", "movies.star", "--o", "ours/", "--j", "1"]) == 0
    program = str(relion / "relion_star_printtable")
    printed = subprocess.run(
        [program, "ours/corrected_micrographs.star", "data_micrographs", "rlnMicrographName", "rlnMicrographMetadata"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.split() == ["ours/m.mrc", "ours/m.star"]


def test_eer_frames_are_drawn_alike(folder, relion):
    shape, rng = (4096, 4096), np.random.default_rng(0)
    frames = []
    for _ in range(6):
        row, column = np.divmod(np.unique(rng.integers(0, shape[0] * shape[1], size=900)), shape[1])
        frames.append(
            np.stack([4 * row + rng.integers(4, size=len(row)), 4 * column + rng.integers(4, size=len(row))], axis=1)
        )
    write_eer("m.eer", frames, shape)
    write_movies_star("movies.star", ["m.eer"], PIXEL)
    program = [
        str(relion / "relion_run_motioncorr"),
        "--i",
        "movies.star",
        "--o",
        "theirs/",
        "--use_own",
        "--skip_defect",
    ]
    subprocess.run([*program, "--eer_grouping", "2", "--j", "2"], check=True, capture_output=True)
    with open_movie("m.eer", eer_grouping=2) as movie:
        first = movie.frame(0)
    theirs = image("theirs/m.mrc")
    # the frames do not correlate: of the sum, only the first is where it was
    np.testing.assert_allclose(theirs.sum(), 3 * first.sum(), rtol=0.01)
    assert theirs[first > 0].mean() > 0.9

"""`spa simulate --kind micrographs` and `movies`: what they write, that it is the truth, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from spa import ctf, micrograph_simulation
from spa.cli.main import run
from spa.fourier import forward, inverse, pad_or_crop
from spa.grids import radius_grid
from spa.io import mrc, star
from spa.simulation import Projector
from tests.jobs.model import write_model

PIXEL, SIZE, DIAMETER = 3.0, 256, 90
BASE = (
    "--model model.pdb --angpix 3 --nr_micrographs 3 --nr_particles 24 --particle_diameter 90 "
    "--defocus_min 8000 --defocus_max 15000 --seed 5 --quiet --j 2"
)
MOVIE = "--nr_frames 6 --drift 3 --doming 6 --hot_pixels 12 --dead_pixels 7"
NAMES = [f"mic{i:05d}" for i in range(1, 4)]

Simulate = Callable[..., Path]
Images = NDArray[np.float32]


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Run the job with the base flags and some more; returns its folder."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.pdb")

    def ran(extra: str = "", kind: str = "micrographs", folder: str = "Sim", status: int = 0) -> Path:
        own = MOVIE.split() if kind == "movies" else []
        if kind != "particles" and "--micrograph_size" not in extra:
            own += ["--micrograph_size", str(SIZE)]
        arguments = ["simulate", "--o", f"{folder}/", "--kind", kind, *BASE.split(), *own, *extra.split()]
        assert run(arguments) == status
        return Path(folder)

    return ran


def _image(folder: Path, name: str = NAMES[0]) -> Images:
    return mrc.read(folder / "micrographs" / f"{name}.mrc")[0][0]


def _truth(folder: Path, name: str = NAMES[0]) -> dict[str, NDArray[np.float64]]:
    block = star.read(folder / "truth_coordinates" / f"{name}.star")[""]
    return {column: block.floats(column) for column in block.columns}


def _templates(folder: Path, truth: dict[str, NDArray[np.float64]], box: int = 64) -> Images:
    """The particles through their CTFs, white, at their fraction of a pixel, from the files alone."""
    volume, pixel = mrc.read_volume(folder / "truth_map.mrc")
    angles = np.stack([truth[f"rlnAngle{name}"] for name in ("Rot", "Tilt", "Psi")], axis=1)
    where = np.stack([truth["rlnCoordinateX"], truth["rlnCoordinateY"]], axis=1)
    images = Projector(volume[None])(np.zeros(len(where), int), angles, where - np.rint(where))
    optics = star.read(folder / "micrographs.star")["optics"]
    microscope = [optics.floats(f"rln{name}")[0] for name in ("Voltage", "SphericalAberration", "AmplitudeContrast")]
    defocus = [truth[f"rlnDefocus{name}"] for name in ("U", "V", "Angle")]
    table = ctf.coefficients(*defocus, *microscope, truth["rlnPhaseShift"], truth["rlnCtfBfactor"], 1.0, pixel, box)
    return np.asarray(inverse(forward(pad_or_crop(images, box, 2)) * ctf.ctf_image(table, box), box))


def _cut(image: Images, truth: dict[str, NDArray[np.float64]], box: int = 32) -> Images:
    """Boxes about the true centres, whose pixel box // 2 is nearest to it."""
    padded = np.pad(image, box, mode="edge")
    x, y = (np.rint(truth[f"rlnCoordinate{axis}"]).astype(int) + box // 2 for axis in "XY")
    return np.stack([padded[b : b + box, a : a + box] for a, b in zip(x, y, strict=True)])


def _frames(folder: Path, name: str = NAMES[0]) -> Images:
    """Counts times gain, rows as in MRC, bad pixels filled with the mean."""
    counts = tifffile.imread(folder / "movies" / f"{name}.tiff")[:, ::-1]
    gain = mrc.read(folder / "gain.mrc")[0][0]
    frames = counts * gain
    motion = star.read(folder / "truth_motion" / f"{name}.star")
    for block in ("hot_pixels", "dead_pixels"):
        x, y = (motion[block].integers(f"rlnCoordinate{axis}") for axis in "XY")
        frames[:, y, x] = np.median(frames)
    return np.asarray(frames, dtype=np.float32)


def _moved(image: Images, shift: NDArray[np.float64]) -> Images:
    fy, fx = micrograph_simulation.frequencies((image.shape[0], image.shape[1]), 1.0)
    phase = np.exp(-2j * np.pi * (fx * shift[0] + fy * shift[1]))
    return np.asarray(np.fft.irfft2(np.fft.rfft2(image) * phase, s=image.shape), dtype=np.float32)


def _agreement(image: Images, folder: Path) -> float:
    """Correlation with the particles drawn at their true places, sign turned, away from the borders."""
    truth = _truth(folder)
    drawn = np.zeros((SIZE + 64, SIZE + 64), np.float32)
    places = (np.rint(truth[f"rlnCoordinate{axis}"]).astype(int) for axis in "XY")
    for template, x, y in zip(_templates(folder, truth), *places, strict=True):
        drawn[y : y + 64, x : x + 64] += template
    drawn = drawn[32:-32, 32:-32]
    inner = slice(24, -24)
    return -float(np.corrcoef(image[inner, inner].ravel(), drawn[inner, inner].ravel())[0, 1])


def test_micrograph_files_and_columns_are_those_named(simulate: Simulate) -> None:
    folder = simulate("--nr_optics_groups 2 --kV 300 --kV 200 --beam_tilt_x 0.5")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "micrographs.star", "truth_ctf.star", "truth_map.mrc", "run.out", "run.err", "job.json",
        "RELION_JOB_EXIT_SUCCESS", *(f"micrographs/{n}.mrc" for n in NAMES),
        *(f"truth_coordinates/{n}.star" for n in NAMES),
    }  # fmt: skip
    found = star.read(folder / "micrographs.star")
    assert found.names == ["optics", "micrographs"]
    assert found["micrographs"].columns == ["rlnMicrographName", "rlnOpticsGroup"]
    assert found["micrographs"].text("rlnMicrographName")[1] == "Sim/micrographs/mic00002.mrc"
    assert found["micrographs"].integers("rlnOpticsGroup").tolist() == [1, 2, 1]
    optics = found["optics"]
    assert optics.floats("rlnMicrographPixelSize").tolist() == [PIXEL, PIXEL]
    assert optics.floats("rlnVoltage").tolist() == [300, 200]
    assert optics.floats("rlnBeamTiltX").tolist() == [0.5, 0.5]
    truth = star.read(folder / "truth_ctf.star")["micrographs"]
    assert truth.text("rlnMicrographName") == found["micrographs"].text("rlnMicrographName")
    u, v = truth.floats("rlnDefocusU"), truth.floats("rlnDefocusV")
    assert truth.floats("rlnCtfAstigmatism") == pytest.approx(u - v, abs=1e-5)
    assert (((u + v) / 2 >= 8000) & ((u + v) / 2 <= 15000)).all()
    header = mrc.info(folder / "micrographs" / "mic00001.mrc")
    assert header.shape == (1, SIZE, SIZE)
    assert header.pixel_size == pytest.approx(PIXEL)
    assert _image(folder).mean() == pytest.approx(40 * PIXEL**2, rel=0.03)


def test_true_particles_do_not_overlap_and_lie_where_they_are_drawn(simulate: Simulate) -> None:
    folder = simulate("--snr 0.5 --defocus_spread 300")
    assert sum(len(_truth(folder, name)["rlnCoordinateX"]) for name in NAMES) == 24
    for name in NAMES:
        truth = _truth(folder, name)
        centres = np.stack([truth["rlnCoordinateX"], truth["rlnCoordinateY"]], axis=1)
        assert pdist(centres).min() >= DIAMETER / PIXEL
        templates = pad_or_crop(_templates(folder, truth), 32, 2)
        inside = radius_grid(32, 2) <= DIAMETER / PIXEL / 2
        cuts = _cut(_image(folder, name), truth)
        matches = np.array([[-np.corrcoef(c[inside], t[inside])[0, 1] for t in templates] for c in cuts])
        assert np.diag(matches).min() > 0.35
        # another particle's pose does not match as well, nor does the place a few pixels away
        assert (matches.argmax(axis=1) == np.arange(len(cuts))).mean() > 0.8
        beside = _cut(_image(folder, name), {**truth, "rlnCoordinateX": truth["rlnCoordinateX"] + 4})
        wrong = [-np.corrcoef(c[inside], t[inside])[0, 1] for c, t in zip(beside, templates, strict=True)]
        assert np.mean(wrong) < np.diag(matches).mean() - 0.2


@pytest.mark.parametrize("snr", [0.02, 0.3])
def test_signal_to_noise_is_as_asked(simulate: Simulate, snr: float) -> None:
    count = "--nr_micrographs 5 --nr_particles 75 --micrograph_size 384"
    folder, empty = simulate(f"{count} --snr {snr}"), simulate(f"{count} --snr 1e-6", folder="Empty")
    inside = radius_grid(32, 2) <= DIAMETER / PIXEL / 2
    signal, noise = [], []
    for name in [f"mic{i:05d}" for i in range(1, 6)]:
        truth, background = _truth(folder, name), _image(empty, name)
        signal.append(_cut(_image(folder, name) - background, truth)[:, inside].var(axis=1))
        noise.append(_cut(background, truth)[:, inside].var(axis=1))
    assert np.concatenate(signal).mean() / np.concatenate(noise).mean() == pytest.approx(snr, rel=0.08)


def test_the_seed_decides_everything_and_the_threads_nothing(simulate: Simulate) -> None:
    lumps = "--carbon 0.5 --contamination 1"
    first = simulate(lumps, "movies")
    again, other = simulate(f"{lumps} --j 1", "movies", "Again"), simulate("--seed 6", "movies", "Other")
    paths = [p for p in first.rglob("*") if p.suffix in (".tiff", ".mrc") or "truth" in p.parent.name]
    assert len(paths) == 3 + 3 + 2 + 6
    for path in paths:
        same, different = again / path.relative_to(first), other / path.relative_to(first)
        if path.suffix == ".mrc":
            assert np.array_equal(mrc.read(path)[0], mrc.read(same)[0])
        elif path.suffix == ".tiff":
            assert path.read_bytes() == same.read_bytes()
        elif "motion" not in path.parent.name:
            assert path.read_text() == same.read_text()
        if path.suffix == ".tiff":
            assert path.read_bytes() != different.read_bytes()


def test_fewer_micrographs_are_the_first_of_more(simulate: Simulate) -> None:
    many, few = simulate(), simulate("--nr_micrographs 2 --nr_particles 16", folder="Few")
    for name in NAMES[:2]:
        assert _truth(many, name)["rlnCoordinateX"] == pytest.approx(_truth(few, name)["rlnCoordinateX"])
    assert np.corrcoef(_image(many).ravel(), _image(few).ravel())[0, 1] > 0.99


def test_continuing_redoes_only_what_is_missing(simulate: Simulate) -> None:
    folder = simulate("", "movies")
    before = [_image(folder, name) for name in NAMES]
    untouched = (folder / "micrographs/mic00001.mrc").stat().st_mtime_ns
    (folder / "movies/mic00003.tiff").unlink()
    assert run(["simulate", "--continue", f"{folder}/job.json"]) == 0
    assert (folder / "movies/mic00003.tiff").is_file()
    assert (folder / "micrographs/mic00001.mrc").stat().st_mtime_ns == untouched
    assert all(np.array_equal(_image(folder, name), image) for name, image in zip(NAMES, before, strict=True))


def test_movie_files_and_columns_are_those_named(simulate: Simulate) -> None:
    folder = simulate("--movie_format mrcs", "movies")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"movies.star", "micrographs.star", "truth_ctf.star", "gain.mrc"} <= names
    assert {f"{kind}/{n}.{end}" for n in NAMES for kind, end in (("movies", "mrcs"), ("truth_motion", "star"))} <= names
    found = star.read(folder / "movies.star")
    assert found.names == ["optics", "movies"]
    assert found["movies"].text("rlnMicrographMovieName")[0] == "Sim/movies/mic00001.mrcs"
    assert found["optics"].floats("rlnMicrographOriginalPixelSize").tolist() == [PIXEL]
    assert "rlnMicrographPixelSize" not in found["optics"]
    motion = star.read(folder / "truth_motion/mic00001.star")
    assert motion.names == ["general", "global_shift", "local_shift", "hot_pixels", "dead_pixels"]
    assert motion["global_shift"].integers("rlnMicrographFrameNumber").tolist() == [1, 2, 3, 4, 5, 6]
    steps = (
        np.diff(motion["global_shift"].floats("rlnMicrographShiftX")),
        np.diff(motion["global_shift"].floats("rlnMicrographShiftY")),
    )
    assert np.hypot(*steps).mean() * PIXEL == pytest.approx(3, rel=1e-3)
    assert len(motion["local_shift"]) == 6 * len(_truth(folder)["rlnCoordinateX"])
    assert (len(motion["hot_pixels"]), len(motion["dead_pixels"])) == (12, 7)
    assert motion["general"].get_integer("rlnImageSizeZ") == 6
    stack = mrc.info(folder / "movies/mic00001.mrcs")
    assert (stack.shape, stack.mode) == ((6, SIZE, SIZE), 1)


def test_tiff_and_mrc_movies_hold_the_same_counts_with_tiff_rows_turned_over(simulate: Simulate) -> None:
    tiff, stack = simulate("", "movies"), simulate("--movie_format mrcs", "movies", "Stack")
    counts = tifffile.imread(tiff / "movies/mic00002.tiff")
    assert counts.dtype == np.uint8
    assert np.array_equal(counts[:, ::-1], mrc.read(stack / "movies/mic00002.mrcs")[0])


def test_frames_have_the_dose_and_go_back_together_with_the_true_shifts(simulate: Simulate) -> None:
    folder = simulate("--snr 1 --dose 60", "movies")
    frames = _frames(folder)
    assert frames.mean(axis=(1, 2)) == pytest.approx(np.full(6, 60 / 6 * PIXEL**2), rel=0.03)
    motion = star.read(folder / "truth_motion/mic00001.star")["global_shift"]
    shifts = np.stack([motion.floats(f"rlnMicrographShift{axis}") for axis in "XY"], axis=1)
    assert np.array_equal(shifts[0], [0, 0])
    back = sum(_moved(frame, shift) for frame, shift in zip(frames, shifts, strict=True))
    away = sum(_moved(frame, -shift) for frame, shift in zip(frames, shifts, strict=True))
    plain, aligned = _agreement(frames.sum(axis=0), folder), _agreement(np.asarray(back), folder)
    assert aligned > 1.2 * plain
    assert _agreement(np.asarray(away), folder) < plain
    # the micrograph at rest and without damage matches best
    assert _agreement(_image(folder), folder) > aligned


def test_local_shifts_improve_on_the_whole_frame(simulate: Simulate) -> None:
    folder = simulate("--snr 2 --dose 60 --drift 0 --doming 18 --bfactor 0", "movies")
    frames, truth = _frames(folder), _truth(folder)
    local = star.read(folder / "truth_motion/mic00001.star")["local_shift"]
    shifts = np.stack([local.floats(f"rlnMicrographShift{axis}") for axis in "XY"], axis=1).reshape(-1, 6, 2)
    assert local.floats("rlnCoordinateX")[::6] == pytest.approx(truth["rlnCoordinateX"])
    templates = pad_or_crop(_templates(folder, truth), 32, 2)
    inside = radius_grid(32, 2) <= DIAMETER / PIXEL / 2
    gains = []
    for i, template in enumerate(templates):
        aligned = sum(_moved(frame, shift) for frame, shift in zip(frames, shifts[i], strict=True))
        seen = [_cut(np.asarray(image), truth)[i] for image in (frames.sum(axis=0), aligned)]
        plain, better = (-np.corrcoef(image[inside], template[inside])[0, 1] for image in seen)
        gains.append(better - plain)
    assert np.mean(gains) > 0.05
    assert np.mean(np.array(gains) > 0) > 0.7


def test_options_reach_the_image(simulate: Simulate) -> None:
    plain = simulate("--snr 1e-6")
    still = simulate("--snr 1e-6 --ice 0 --dose 10", folder="Shot")
    inner = _image(still)[100:140, 100:140]
    assert inner.mean() == pytest.approx(10 * PIXEL**2, rel=0.06)
    assert inner.var() == pytest.approx(10 * PIXEL**2, rel=0.15)
    for i, flags in enumerate(("--carbon 1", "--contamination 20", "--ice_peak 5 --angpix 1.6", "--bfactor 500")):
        other = _image(simulate(f"--snr 1e-6 {flags}", folder=f"Other{i}"))
        assert not np.array_equal(other, _image(plain))
    shifted = star.read(simulate("--phase_shift 30 --phase_shift 90", folder="Plate") / "truth_ctf.star")
    phases = shifted["micrographs"].floats("rlnPhaseShift")
    assert ((phases >= 30) & (phases <= 90)).all()
    assert np.ptp(phases) > 1
    wide = _image(simulate("--micrograph_size 320 --micrograph_size 200", folder="Wide"))
    assert wide.shape == (200, 320)


def test_particles_on_carbon_are_left_out(simulate: Simulate) -> None:
    covered, clear = simulate("--carbon 1"), simulate(folder="Clear")
    numbers = [sum(len(_truth(f, name)["rlnCoordinateX"]) for name in NAMES) for f in (covered, clear)]
    assert numbers[0] < numbers[1] == 24


def test_contrast_beyond_what_electrons_carry_is_told(simulate: Simulate, capsys: pytest.CaptureFixture[str]) -> None:
    simulate("--snr 100 --dose 1")
    assert "of the pixels expect no electron" in (Path("Sim") / "run.err").read_text()


@pytest.mark.parametrize(
    ("flags", "kind", "status", "message"),
    [
        ("--nr_particles 2000", "micrographs", 1, "particles of 30 px do not fit a micrograph of 256 x 256 px"),
        ("--micrograph_size 64 --particle_diameter 195", "micrographs", 1, "does not fit a micrograph of 64 x 64 px"),
        ("--defocus_min 30000", "movies", 2, "--defocus_min 30000: expected at most --defocus_max 15000"),
        ("--phase_shift 90 --phase_shift 30", "micrographs", 2, "--phase_shift 90, then 30: expected the smaller"),
        ("--micrograph_size 256 " * 3, "micrographs", 2, "--micrograph_size: expected it once or twice, got 3 times"),
        ("--box 20", "micrographs", 1, "--box 20: 60 Å leaves no background around the particle circle of 90 Å"),
        ("--ice 1", "micrographs", 2, "--ice 1: expected 0 to 0.99"),
        ("--no_ctf", "micrographs", 2, "--no_ctf: means something for --kind particles only"),
        ("--kV 120", "movies", 1, "not for 120 kV"),
        ("--sigma_offset 0", "movies", 2, "--sigma_offset: means something for --kind particles only"),
        ("--nr_frames 8", "micrographs", 2, "--nr_frames: means something for --kind movies only"),
        ("--carbon 1", "particles", 2, "--carbon: means something for --kind micrographs and movies only"),
        ("--dose 10000 --nr_frames 2", "movies", 2, "45000 electrons in a pixel of a frame do not fit 16 bits"),
    ],
)
def test_wrong_input_is_one_line(
    simulate: Simulate, flags: str, kind: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(flags, kind, status=status)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]

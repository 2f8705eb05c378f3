"""Motion correction of simulated movies against their truth, and time and memory of one large movie.

python -m benchmarks.jobs.motioncorr [--size PIXELS] [--j J] [--save]

Beside the error of whole-frame shifts stands the least that any unbiased estimate from the same frames can have, the
Cramér-Rao bound. It falls with the size of the frames; that the motion is smooth, which it leaves out, allows for less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.jobs.measure import SPA, measured
from benchmarks.jobs.motion_bound import least_error
from spa.ctf import coefficients
from spa.fourier import shift
from spa.io import mrc, star
from spa.motion_model import LocalModel
from spa.simulation import Projector

Floats = NDArray[np.float64]

CASES = ((0.5, 4.0), (1.0, 4.0), (3.0, 4.0), (3.0, 8.0))
"""Drift in Å a frame, doming in Å."""

SEEDS = (1, 2, 3)
N_FRAMES, PIXEL, DOSE, N_MOVIES = 24, 1.5, 40.0, 2
BFACTOR = 150.0
"""Of `spa motioncorr`, Å²: which frequencies are looked at."""

PARTICLES = 54
"""In a movie of 1024 x 1024 pixels, which leaves them room."""
LARGE = 4096


def shifts_of(table: star.Block) -> Floats:
    """Shifts (n, 2) of a table."""
    return np.stack([table.floats("rlnMicrographShiftX"), table.floats("rlnMicrographShiftY")], axis=1)


class Truth:
    """Corrections of the particles of a movie, (n_frames, n_particles, 2) pixels, and their places."""

    def __init__(self, path: Path) -> None:
        tables = star.read(path)
        whole, local = shifts_of(tables["global_shift"]), tables["local_shift"]
        n_frames = len(whole)
        self.corrections = whole[:, None] + np.swapaxes(shifts_of(local).reshape(-1, n_frames, 2), 0, 1)
        at = np.stack([local.floats("rlnCoordinateX"), local.floats("rlnCoordinateY")], axis=1)[::n_frames]
        self.whole = self.corrections.mean(axis=1)
        size = [tables["general"].get_float(f"rlnImageSize{axis}") for axis in "XY"]
        self.places = at / size - 0.5

    def errors(self, path: Path) -> tuple[float, float]:
        """Of a result, in Å: whole-frame shifts against the mean over the particles; motion left at the particles."""
        tables = star.read(path)
        found = np.repeat(shifts_of(tables["global_shift"])[:, None], len(self.places), axis=1)
        whole = found[:, 0] - self.whole
        if "local_motion_model" in tables:
            model = LocalModel(tables["local_motion_model"].floats("rlnMotionModelCoeff").reshape(2, 18))
            found = found + model.at(np.arange(len(found), dtype=np.float64), self.places)
        return spread(whole[:, None]), spread(found - self.corrections)


def spread(errors: Floats) -> float:
    """Root mean square length in Å of errors (n_frames, n, 2) around their mean over the frames."""
    around = errors - errors.mean(axis=0)
    return float(np.sqrt((around**2).sum(axis=-1).mean())) * PIXEL


def template_correlation(folder: Path, name: str, image: Path) -> float:
    """Mean correlation of particles in a micrograph with projections of the true map, between 30 and 4 Å."""
    volume, _ = mrc.read_volume(folder / "truth_map.mrc")
    box = len(volume)
    table = next(iter(star.read(folder / "truth_coordinates" / f"{name}.star")))
    optics = star.read(folder / "movies.star")["optics"]
    scope = [optics.floats(f"rln{c}")[0] for c in ("Voltage", "SphericalAberration", "AmplitudeContrast")]
    defocus = [table.floats(f"rlnDefocus{c}") for c in ("U", "V", "Angle")]
    ctf = coefficients(*defocus, *scope, table.floats("rlnPhaseShift"), 0, 1, PIXEL, box)
    angles = np.stack([table.floats(f"rlnAngle{c}") for c in ("Rot", "Tilt", "Psi")], axis=1)
    at = np.stack([table.floats("rlnCoordinateX"), table.floats("rlnCoordinateY")], axis=1)
    micrograph = mrc.read(image)[0][0]
    corner = np.rint(at).astype(int) - box // 2
    inside = ((corner >= 0) & (corner + box <= np.array(micrograph.shape[::-1]))).all(axis=1)
    cut = np.stack([micrograph[y : y + box, x : x + box] for x, y in corner[inside]])
    projector = Projector(volume[None])
    classes = np.zeros(int(inside.sum()), dtype=np.int32)
    templates = projector(classes, angles[inside], (at - np.rint(at))[inside], ctf[inside])
    s = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)) / PIXEL
    band = (s > 1 / 30) & (s < 1 / 4)
    a, b = (np.fft.rfft2(images) * band for images in (cut, templates))
    cross = (a * b.conj()).real.sum(axis=(1, 2))
    return float(abs(np.mean(cross / np.sqrt((abs(a) ** 2).sum(axis=(1, 2)) * (abs(b) ** 2).sum(axis=(1, 2))))))


def accuracy(folder: Path, size: int, threads: str) -> list[list[str]]:
    """Rows of the table: one for each case and seed; motion in Å, as root mean square lengths, and correlations."""
    rows = [
        [
            "drift, doming (Å), seed",
            "whole-frame error",
            "worst",
            "bound",
            "left",
            "by patches",
            "ratio",
            "plain sum",
            "weighted",
        ]
    ]
    for drift, doming in CASES:
        for seed in SEEDS:
            values = np.array(corrected(folder / f"{drift}_{doming}_{seed}", drift, doming, seed, size, threads))
            whole, left, local, plain, weighted, bound = values.mean(axis=0)
            numbers = [whole, values[:, 0].max(), bound, left, local, local / left, plain, weighted]
            rows.append([f"{drift:g}, {doming:g}, {seed}", *(f"{number:.3f}" for number in numbers)])
    return rows


def corrected(made: Path, drift: float, doming: float, seed: int, size: int, threads: str) -> list[tuple[float, ...]]:
    """Of each movie simulated: whole-frame error, motion left by whole frames and by patches, correlations of sums,
    and the least error of whole frames."""
    simulate = ["--kind", "movies", "--nr_micrographs", str(N_MOVIES), "--micrograph_size", str(size)]
    simulate += ["--nr_particles", str(round(N_MOVIES * PARTICLES * (size / 1024) ** 2)), "--seed", str(seed)]
    simulate += ["--angpix", str(PIXEL), "--dose", str(DOSE), "--nr_frames", str(N_FRAMES)]
    simulate += ["--drift", str(drift), "--doming", str(doming)]
    measured([*SPA, "simulate", *simulate, "--o", str(made), "--j", threads, "--quiet"])
    job = [*SPA, "motioncorr", "--i", str(made / "movies.star"), "--gainref", str(made / "gain.mrc")]
    job += ["--dose_weighting", "--dose_per_frame", str(DOSE / N_FRAMES), "--save_noDW", "--j", threads, "--quiet"]
    measured([*job, "--o", str(made / "whole")])
    measured([*job, "--o", str(made / "local"), "--patch_x", "5", "--patch_y", "5"])
    runs = [star.read(made / run / "corrected_micrographs.star")["micrographs"] for run in ("whole", "local")]
    results = []
    for row, name in enumerate(runs[0].text("rlnMicrographMovieName")):
        stem = Path(name).stem
        truth = Truth(made / "truth_motion" / f"{stem}.star")
        whole, local = (truth.errors(Path(run.text("rlnMicrographMetadata")[row])) for run in runs)
        images = [Path(runs[1].text(column)[row]) for column in ("rlnMicrographNameNoDW", "rlnMicrographName")]
        plain, weighted = (template_correlation(made, stem, image) for image in images)
        bound = PIXEL * least_error(Path(name), made / "gain.mrc", truth.whole, BFACTOR / PIXEL**2)
        results.append((*whole, local[1], plain, weighted, bound))
    return results


def cost(folder: Path, threads: str) -> list[list[str]]:
    """Rows of the table: seconds and memory of one movie of 24 x 4096 x 4096 bytes, LZW."""
    write_large(folder)
    rows = [["24 x 4096 x 4096, LZW", "wall (s)", "CPU (s)", "peak (GiB)", "of a float32 movie"]]
    copy = N_FRAMES * LARGE**2 * 4 / 2**30
    for label, flags in (("whole frames", []), ("5 x 5 patches, dose weighted", ["--patch_x", "5", "--patch_y", "5"])):
        job = [*SPA, "motioncorr", "--i", str(folder / "movies.star"), "--o", str(folder / "out"), "--j", threads]
        job += [*flags, "--dose_weighting", "--dose_per_frame", "1.5", "--quiet"]
        found = measured(job)
        share = found.peak_gib / copy
        numbers = (found.wall_seconds, found.cpu_seconds, found.peak_gib, share)
        rows.append([label, *(f"{number:.{digits}f}" for number, digits in zip(numbers, (1, 1, 2, 2), strict=True))])
    return rows


def write_large(folder: Path) -> None:
    """A movie of 1 Å pixels of a random specimen that drifts by a pixel a frame, and its STAR file."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(LARGE)[:, None], np.fft.rfftfreq(LARGE)).astype(np.float32)
    noise = np.fft.rfft2(rng.standard_normal((LARGE, LARGE), dtype=np.float32))
    specimen = np.fft.irfft2(noise * np.exp(-((frequency * 8) ** 2))).astype(np.float32)
    specimen *= 0.05 / specimen.std()
    with tifffile.TiffWriter(folder / "large.tiff") as file:
        for i in range(N_FRAMES):
            seen = shift(specimen[None], np.array([[float(i), 0.5 * i]]))[0]
            frame = rng.poisson(np.maximum(1.5 * (1 + seen), 0)).astype(np.uint8)
            file.write(frame[::-1], compression="lzw", photometric="minisblack", contiguous=False)
    optics: dict[str, Any] = {"rlnOpticsGroupName": ["g"], "rlnOpticsGroup": [1], "rlnVoltage": [300.0]}
    optics |= {"rlnMicrographOriginalPixelSize": [1.0], "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1]}
    movies = {"rlnMicrographMovieName": [str(folder / "large.tiff")], "rlnOpticsGroup": [1]}
    blocks = [star.Block.table("optics", optics), star.Block.table("movies", movies)]
    star.write(folder / "movies.star", star.StarFile(blocks))


def main() -> None:
    """Simulate, correct, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="pixels of the simulated frames")
    parser.add_argument("--j", default="2", help="threads")
    parser.add_argument("--save", action="store_true", help="keep the tables in benchmarks/results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = report.aligned(accuracy(Path(folder), given.size, given.j))
        print(text, flush=True)
        text += "\n\n" + report.aligned(cost(Path(folder), given.j))
    print(text.partition("\n\n")[2])
    if given.save:
        report.save("motioncorr_cpu.txt", "benchmarks.jobs.motioncorr", text)


if __name__ == "__main__":
    main()

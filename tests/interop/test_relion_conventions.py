"""Projection, CTF, shifts, reconstruction and symmetry against an installed RELION, in correlations per shell."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from spa import ctf, euler, fourier, reconstruct
from spa.grids import half_plane, radius_grid, rfft_shells
from spa.kernels.ctf import evaluate_ctf
from spa.kernels.slices import extract_slices, insert_slices
from spa.noise import coloured_noise
from spa.symmetry import operators

BOX, PIXEL_SIZE, PADDING, N = 64, 2.5, 2, 600
PIXELS = half_plane(BOX, 31)
KX, KY = PIXELS.kx.astype(np.float32), PIXELS.ky.astype(np.float32)
THREE_QUARTERS = 24
COLUMNS = [
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfBfactor",
    "rlnCtfScalefactor",
]
OPTICS = {
    "rlnOpticsGroup": 1,
    "rlnOpticsGroupName": "one",
    "rlnVoltage": 300,
    "rlnSphericalAberration": 2.7,
    "rlnAmplitudeContrast": 0.1,
    "rlnImagePixelSize": PIXEL_SIZE,
    "rlnImageSize": BOX,
    "rlnImageDimensionality": 2,
}


@dataclass
class Data:
    """A map and particles with known poses and CTFs; `table` holds COLUMNS."""

    volume: np.ndarray
    table: np.ndarray

    @property
    def rotations(self):
        return euler.matrix(*self.table[:, :3].T).astype(np.float32)

    @property
    def origins(self):
        return self.table[:, 3:5] / PIXEL_SIZE

    def ctf(self):
        u, v, angle, phase, b, scale = self.table[:, 5:].T
        coefficients = ctf.coefficients(u, v, angle, 300, 2.7, 0.1, phase, b, scale, PIXEL_SIZE, BOX)
        return evaluate_ctf(coefficients, KX, KY)

    def slices(self):
        transform = fourier.reference_transform(self.volume, PADDING, PIXELS.kmax)[None]
        return extract_slices(transform, np.zeros(N, np.int32), self.rotations, KX, KY, PADDING)

    def values(self, with_ctf, with_shift):
        """Half-plane pixels of the particles: CTF * slice, displaced by minus the origin."""
        values = self.slices() * (self.ctf() if with_ctf else 1)
        return values * fourier.phase_factors(-self.origins, KX, KY, BOX) if with_shift else values


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    volume = coloured_noise((1, BOX, BOX, BOX), 1e4 * np.exp(-np.arange(BOX // 2 + 1) / 12), rng)[0]
    volume *= np.exp(-((radius_grid(BOX, 3) / 16) ** 4))
    defocus = rng.uniform(8000, 20000, N)
    low, high = np.array([[-10, -10, 0, 0, 0, 0.8], [10, 10, 180, 60, 40, 1.2]])
    x, y, angle, phase, b, scale = rng.uniform(low, high, (N, 6)).T
    astigmatism = rng.uniform(0, 1500, N)
    angles = euler.angles(euler.random_rotations(N, rng)).T
    table = np.stack([*angles, x, y, defocus, defocus - astigmatism, angle, phase, b, scale], axis=1)
    return Data(volume, np.round(table, 6))


def run(relion: Path, folder: Path, program: str, *arguments: str) -> str:
    done = subprocess.run([relion / program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_map(path, array):
    with mrcfile.new(path) as mrc:
        mrc.set_data(array.astype(np.float32))
        mrc.voxel_size = PIXEL_SIZE


def write_star(path, table, stack):
    def loop(names):
        return "loop_\n" + "".join(f"_{name} #{i}\n" for i, name in enumerate(names, 1))

    rows = (f"{i:06d}@{stack} " + " ".join(f"{x:.6f}" for x in row) + " 1\n" for i, row in enumerate(table, 1))
    path.write_text(
        "\n# version 30001\n\ndata_optics\n\n"
        + loop(OPTICS)
        + " ".join(map(str, OPTICS.values()))
        + "\n\n# version 30001\n\ndata_particles\n\n"
        + loop(["rlnImageName", *COLUMNS, "rlnOpticsGroup"])
        + "".join(rows)
        + "\n"
    )


def image_correlation(a, b):
    """Correlation of two sets of half-plane pixels on each shell from 1 on, over all images."""
    shells = np.broadcast_to(PIXELS.shell, a.shape).ravel()

    def sums(x):
        return np.bincount(shells, np.real(x).ravel())[1:]

    return sums(a * np.conj(b)) / np.sqrt(sums(np.abs(a) ** 2) * sums(np.abs(b) ** 2))


def map_correlation(a, b):
    """Correlation of two maps on each shell from 1 on, inside the sphere: RELION blanks the corners of its box."""
    sphere = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius_grid(BOX, 3) - 28) / 3, 0, 1))
    fa, fb = (fourier.forward((x * sphere).astype(np.float32), 3) for x in (a, b))
    shells = rfft_shells(BOX, 3)
    on = [shells == s for s in range(1, BOX // 2)]
    return np.array([np.vdot(fa[s], fb[s]).real / np.linalg.norm(fa[s]) / np.linalg.norm(fb[s]) for s in on])


@pytest.mark.parametrize("with_ctf", [False, True])
def test_projections_have_relions_poses_shifts_and_ctf(relion, data, tmp_path, with_ctf):
    write_map(tmp_path / "map.mrc", data.volume)
    write_star(tmp_path / "in.star", data.table, "none.mrcs")
    flags = ["--ctf"] if with_ctf else []
    run(
        relion,
        tmp_path,
        "relion_project",
        "--i",
        "map.mrc",
        "--ang",
        "in.star",
        "--o",
        "out",
        "--pad",
        "2",
        *flags,
    )
    theirs = fourier.gather(fourier.forward(mrcfile.read(tmp_path / "out.mrcs")), PIXELS)
    ours = data.values(with_ctf, with_shift=True)
    assert image_correlation(ours, theirs).min() > 0.9999
    assert np.vdot(ours, theirs).real / np.vdot(ours, ours).real == pytest.approx(1, abs=1e-3)
    # the check has teeth: the opposite shift or no CTF fails it
    assert image_correlation(data.slices() * data.ctf(), theirs)[8:].max() < 0.9


@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.parametrize("group", ["C1", "D2"])
@pytest.mark.parametrize("gridding", [(), ("--skip_gridding",)])
def test_reconstruction_agrees_with_relion_reconstruct(relion, data, tmp_path, with_ctf, group, gridding):
    values = data.values(with_ctf, with_shift=True)
    images = fourier.inverse(fourier.scatter(values, PIXELS), BOX)
    write_map(tmp_path / "stack.mrcs", images)
    write_star(tmp_path / "in.star", data.table, "stack.mrcs")
    flags = [*(["--ctf"] if with_ctf else []), *gridding]
    run(relion, tmp_path, "relion_reconstruct", "--i", "in.star", "--o", "out.mrc", "--sym", group, *flags)
    theirs = mrcfile.read(tmp_path / "out.mrc")

    factor = data.ctf() if with_ctf else np.ones(values.shape, np.float32)
    centred = values * factor * fourier.phase_factors(data.origins, KX, KY, BOX)
    sums, weight = reconstruct.new_accumulator(1, BOX, PADDING, PIXELS.kmax)
    classes = np.zeros(N, np.int32)
    insert_slices(sums, weight, classes, data.rotations, KX, KY, centred, factor**2, PADDING)
    symmetric = reconstruct.symmetrise(sums[0], weight[0], operators(group))
    ours = reconstruct.solve(*symmetric, BOX, PADDING, PIXELS.kmax)

    correlation = map_correlation(ours, theirs)[:THREE_QUARTERS]
    # the direct division is RELION's --skip_gridding; its iterative gridding differs a little
    assert correlation.min() > (0.9999 if gridding else 0.999)
    assert ours.std() / theirs.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("group", ["C1", "C4", "D2", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"])
def test_symmetry_operators_are_relions(relion, tmp_path, group):
    text = run(relion, tmp_path, "relion_refine", "--sym", group, "--o", "x", "--print_symmetry_ops")
    blocks = re.split(r"R\(\d+\)=", text)[1:]
    rows = [re.findall(r"[-+.\deE]+", block.split("Euler")[0])[:9] for block in blocks]
    theirs = np.array(rows, dtype=float).reshape(-1, 3, 3)
    difference = np.abs(theirs[:, None] - operators(group)[None]).max(axis=(2, 3))
    assert difference.shape[0] == difference.shape[1]
    assert difference.min(axis=0).max() < 1e-4
    assert difference.min(axis=1).max() < 1e-4

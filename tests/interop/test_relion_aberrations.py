"""Beam tilt, Zernike phases and magnification against relion_reconstruct: images made by the formulas, both correct."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa import ctf, euler
from spa.cli.main import run
from spa.fourier import forward, inverse, phase_factors, reference_transform, scatter
from spa.grids import half_plane, radius_grid, rfft_shells
from spa.io import mrc, star
from spa.io.star import Block, StarFile
from spa.kernels.slices import extract_slices
from spa.noise import coloured_noise

BOX, PIXEL_SIZE, N = 64, 1.4, 600
PIXELS = half_plane(BOX, 31)
K = np.stack([PIXELS.kx, PIXELS.ky]).astype(np.float64)
LAMBDA = float(ctf.wavelength(300))

TILT = (1.5, -2.0)
MATRIX = np.array([[1.06, 0.03], [-0.01, 0.95]])
# RELION 3.1 lets a beam tilt replace the coefficients of coma, which RELION 5 adds; it writes them as zeros
ODD = (2.0, -1.0, 15.0, 0.0, 0.0, 18.0)
EVEN = (0.3, 5.0, -0.4, 8.0, 10.0, -12.0, 6.0, 9.0, -7.0)


def odd_phase(x, y, r2):
    c, tilted = ODD, -2e4 * np.pi * 2.7 * LAMBDA**2 * r2 * (TILT[0] * x + TILT[1] * y)
    return tilted + c[0] * y + c[1] * x + c[2] * (3 * x**2 * y - y**3) + c[5] * (x**3 - 3 * x * y**2)


def even_phase(x, y, r2):
    c = EVEN
    second = c[1] * 2 * x * y + c[2] * (2 * r2 - 1) + c[3] * (x**2 - y**2)
    fourth = c[4] * 4 * x * y * (x**2 - y**2) + c[5] * (4 * r2 - 3) * 2 * x * y + c[6] * (6 * r2**2 - 6 * r2 + 1)
    return c[0] + second + fourth + c[7] * (4 * r2 - 3) * (x**2 - y**2) + c[8] * (x**4 - 6 * x**2 * y**2 + y**4)


COLUMNS = {
    "odd": {"rlnBeamTiltX": TILT[0], "rlnBeamTiltY": TILT[1], "rlnOddZernike": str(list(ODD)).replace(" ", "")},
    "even": {"rlnEvenZernike": str(list(EVEN)).replace(" ", "")},
    "magnification": {f"rlnMagMat{i}{j}": MATRIX[i, j] for i in (0, 1) for j in (0, 1)},
}


class Truth:
    """A map, and images of it with chosen aberrations in the second of two optics groups."""

    def __init__(self):
        rng = np.random.default_rng(11)
        spectrum = 1e4 * np.exp(-np.arange(BOX // 2 + 1) / 12)
        self.volume = coloured_noise((1, BOX, BOX, BOX), spectrum, rng)[0] * np.exp(-((radius_grid(BOX, 3) / 16) ** 4))
        self.angles = np.round(euler.angles(euler.random_rotations(N, rng)), 6)
        self.origins = np.round(rng.uniform(-5, 5, (N, 2)), 6)
        self.defocus = np.round(rng.uniform(8000, 20000, N), 6)
        self.half = reference_transform(self.volume, 2, 31)[None]
        self.groups = (np.arange(N) % 4 > 0).astype(int)

    def write(self, folder, kinds, with_ctf=True):
        """Images as a microscope with these aberrations gives them."""
        values = np.concatenate([self._values(i, kinds, with_ctf) for i in range(N)])
        values = values * phase_factors(-self.origins / PIXEL_SIZE, *K, BOX)
        images = inverse(scatter(values.astype(np.complex64), PIXELS), BOX).astype(np.float32)
        mrc.write_stack(folder / "stack.mrcs", images, PIXEL_SIZE)

    def _values(self, i, kinds, with_ctf):
        aberrated = kinds if self.groups[i] else ()
        points = MATRIX @ K if "magnification" in aberrated else K
        x, y = points / (BOX * PIXEL_SIZE)
        r2 = x**2 + y**2
        rotation = euler.matrix(*self.angles[i : i + 1].T).astype(np.float32)
        plane = extract_slices(self.half, np.zeros(1, np.int32), rotation, *points.astype(np.float32), 2)
        if not with_ctf:
            return plane
        chi = np.pi * LAMBDA * self.defocus[i] * r2 - np.pi / 2 * 2.7e7 * LAMBDA**3 * r2**2 + np.arcsin(0.1)
        chi = chi - (even_phase(x, y, r2) if "even" in aberrated else 0)
        return plane * np.sin(chi) * np.exp(1j * (odd_phase(x, y, r2) if "odd" in aberrated else 0 * x))

    def write_star(self, path, kinds):
        """Particles, with the columns of the aberrations in the second optics group."""
        optics = {
            "rlnOpticsGroup": [1, 2],
            "rlnOpticsGroupName": ["ideal", "aberrated"],
            "rlnVoltage": [300, 300],
            "rlnSphericalAberration": [2.7, 2.7],
            "rlnAmplitudeContrast": [0.1, 0.1],
            "rlnImagePixelSize": [PIXEL_SIZE] * 2,
            "rlnImageSize": [BOX] * 2,
            "rlnImageDimensionality": [2, 2],
        }
        ideal = {"rlnMagMat00": 1, "rlnMagMat11": 1, "rlnOddZernike": "[0,0,0,0,0,0]", "rlnEvenZernike": "[0]"}
        for kind in kinds:
            optics |= {name: [ideal.get(name, 0), value] for name, value in COLUMNS[kind].items()}
        particles = {
            "rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(N)],
            **dict(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), self.angles.T, strict=True)),
            **dict(zip(("rlnOriginXAngst", "rlnOriginYAngst"), self.origins.T, strict=True)),
            "rlnDefocusU": self.defocus,
            "rlnDefocusV": self.defocus,
            "rlnDefocusAngle": np.zeros(N),
            "rlnOpticsGroup": self.groups + 1,
        }
        star.write(path, StarFile([Block.table("optics", optics), Block.table("particles", particles)]))


@pytest.fixture(scope="module")
def truth():
    return Truth()


def reconstructions(relion: Path, folder: Path, flags: list[str]):
    """The maps of relion_reconstruct and of `spa reconstruct`."""
    command = [relion / "relion_reconstruct", "--i", "in.star", "--o", "theirs.mrc", "--skip_gridding", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(["reconstruct", "--i", "in.star", "--o", "ours.mrc", "--quiet", "--j", "2", *flags]) == 0
    return mrc.read_volume(folder / "theirs.mrc")[0], mrc.read_volume(folder / "ours.mrc")[0]


def correlation(a, b):
    """Correlation of two maps on shells 1 to 24, inside a sphere: RELION blanks the corners of its box."""
    sphere = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius_grid(BOX, 3) - 28) / 3, 0, 1))
    fa, fb = (forward((x * sphere).astype(np.float32), 3) for x in (a, b))
    on = [rfft_shells(BOX, 3) == s for s in range(1, 25)]
    return np.array([np.vdot(fa[s], fb[s]).real / np.linalg.norm(fa[s]) / np.linalg.norm(fb[s]) for s in on])


@pytest.mark.parametrize("kinds", [("odd",), ("even",), ("magnification",), ("odd", "even", "magnification")])
def test_aberrations_are_corrected_as_by_relion(relion, truth, tmp_path, monkeypatch, kinds):
    monkeypatch.chdir(tmp_path)
    truth.write(tmp_path, kinds)
    truth.write_star(tmp_path / "in.star", kinds)
    theirs, ours = reconstructions(relion, tmp_path, ["--ctf"])
    assert correlation(ours, theirs).min() > 0.999
    assert correlation(ours, truth.volume).min() > 0.998
    assert correlation(theirs, truth.volume).min() > 0.998
    # the check has teeth: without the columns both fail alike
    truth.write_star(tmp_path / "in.star", ())
    theirs, ours = reconstructions(relion, tmp_path, ["--ctf"])
    assert correlation(ours, theirs).min() > 0.999
    assert correlation(ours, truth.volume).min() < 0.9


def test_the_magnification_is_corrected_without_the_ctf(relion, truth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth.write(tmp_path, ("magnification",), with_ctf=False)
    truth.write_star(tmp_path / "in.star", ("magnification",))
    theirs, ours = reconstructions(relion, tmp_path, [])
    assert correlation(ours, theirs).min() > 0.999
    assert correlation(ours, truth.volume).min() > 0.998

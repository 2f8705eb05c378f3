"""Symmetry expansion against the installed relion_particle_symmetry_expand: the same set of poses."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from spa import euler
from spa.cli.main import run
from spa.io import star
from spa.io.star import Block, StarFile

POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
N = 6


@pytest.mark.parametrize(("group", "order"), [("C5", 5), ("D2", 4), ("D7", 14), ("T", 12), ("O", 24), ("I2", 60)])
def test_poses_are_those_of_relion(relion, tmp_path, monkeypatch, group, order):
    monkeypatch.chdir(tmp_path)
    angles = np.random.default_rng(8).uniform([-180, 1, -180], [180, 179, 180], (N, 3))
    optics = {
        "rlnOpticsGroupName": ["one"],
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [2.0],
        "rlnImageSize": [64],
        "rlnImageDimensionality": [2],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    rows = {
        "rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(N)],
        "rlnMicrographName": ["m.mrc"] * N,
        "rlnOpticsGroup": [1] * N,
        "rlnOriginXAngst": [1.5 * i for i in range(N)],
        "rlnOriginYAngst": [-0.5 * i for i in range(N)],
        **dict(zip(POSE, angles.T, strict=True)),
    }
    star.write("in.star", StarFile([Block.table("optics", optics), Block.table("particles", rows)]))
    program = [relion / "relion_particle_symmetry_expand", "--i", "in.star", "--o", "theirs.star", "--sym", group]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run(["expand", "--i", "in.star", "--o", "ours.star", "--sym", group, "--quiet"]) == 0
    ours, theirs = (star.read(name)["particles"] for name in ("ours.star", "theirs.star"))
    assert len(ours) == len(theirs) == N * order
    for name in rows["rlnImageName"]:
        mine, other = (np.flatnonzero(np.array(t.text("rlnImageName")) == name) for t in (ours, theirs))
        assert len(mine) == len(other) == order
        one, two = (
            euler.matrix(*(table.floats(column)[rows_] for column in POSE))
            for table, rows_ in ((ours, mine), (theirs, other))
        )
        apart = np.array([euler.angular_distance(two, pose) for pose in one])
        assert sorted(apart.argmin(axis=1)) == list(range(order))
        assert apart.min(axis=1).max() < 1e-2
        for column in ("rlnOriginXAngst", "rlnOriginYAngst"):
            assert np.ptp(np.r_[ours.floats(column)[mine], theirs.floats(column)[other]]) < 1e-5

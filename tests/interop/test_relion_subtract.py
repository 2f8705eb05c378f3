"""Subtraction from particles that relion_project simulated: nothing but their noise is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.grids import radius_grid
from spa.io import mrc, star
from spa.io.particle_io import ParticleImages, read_particles, write_particles

N = 300


def test_only_the_noise_is_left(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = shared_data / "sim_7cfn"
    particles = read_particles(source / "truth_particles.star").subset(np.arange(N))
    write_particles("some.star", particles)
    truth, pixel_size = mrc.read_volume(source / "truth_map.mrc")
    mask = np.zeros_like(truth)
    mask[:3, :3, :3] = 1  # keep a corner of the box, which is empty
    mrc.write_volume("corner.mrc", mask, pixel_size)
    flags = f"--i some.star --ref {source}/truth_map.mrc --mask corner.mrc --ctf --o Sub --j 2 --quiet"
    assert run(["subtract", *flags.split()]) == 0
    assert not star.read("Sub/particles_subtracted.star")["particles"].text("rlnImageName")[0].startswith("/")
    left = ParticleImages(read_particles("Sub/particles_subtracted.star")).read(np.arange(N))
    before = ParticleImages(particles).read(np.arange(N))
    inside, outside = radius_grid(64, 2) < 14, radius_grid(64, 2) > 28
    noise = left[:, outside].var()
    assert before[:, inside].var() > 1.4 * noise
    assert left[:, inside].var() == pytest.approx(noise, rel=0.02)
    taken = before - left
    assert abs((left * taken).sum() / (taken**2).sum()) < 0.02

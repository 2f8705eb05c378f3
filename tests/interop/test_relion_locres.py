"""Local resolution against relion_postprocess --locres, on the same half maps."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc
from tests.half_maps import half_maps, radius, region_maps

HALF1, HALF2 = "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"
FLAGS = ["--locres_sampling", "16", "--locres_maskrad", "10", "--locres_edgwidth", "16", "--locres_randomize_at", "20"]


def both(relion: Path, *arguments: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(local resolution, filtered map) of our program and of RELION's, on the half maps of this folder."""
    common = ["--i", HALF1, "--locres", "--adhoc_bfac", "-60", *FLAGS, *arguments]
    for folder in ("ours", "theirs"):
        Path(folder).mkdir()
    assert run(["postprocess", *common, "--o", "ours/p", "--j", "1", "--quiet"]) == 0
    subprocess.run([str(relion / "relion_postprocess"), *common, "--o", "theirs/p"], check=True, capture_output=True)
    suffixes = ("_locres.mrc", "_locres_filtered.mrc")
    found = [[mrc.read_volume(f"{folder}/p{suffix}")[0] for suffix in suffixes] for folder in ("ours", "theirs")]
    return [(local, filtered) for local, filtered in found]


def relion_points(box: int, pixel_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Where RELION sampled, (z, y, x) from the centre in pixels, and the shell it found at each point."""
    text = Path("theirs/p_locres_fscs.star").read_text()
    found = re.findall(r"kk= (\S+) ii= (\S+) jj= (\S+) local resolution= (\S+)", text)
    values = np.array(found, dtype=np.float64)
    return values[:, 2::-1], box * pixel_size / values[:, 3]  # relion 3.1.3 says z and means x


@pytest.mark.parametrize(("box", "pixel_size", "noise"), [(64, 2.0, (0.5, 0.1)), (80, 1.6, (0.4, 0.05))])
def test_regions_agree_within_a_shell_or_two(relion, tmp_path, monkeypatch, box, pixel_size, noise):
    monkeypatch.chdir(tmp_path)
    made = region_maps(box, pixel_size, noise)
    mrc.write_volume(HALF1, made.half1, pixel_size)
    mrc.write_volume(HALF2, made.half2, pixel_size)
    (ours, our_map), (theirs, their_map) = both(relion)
    places, shells = relion_points(box, pixel_size)
    at_places = box * pixel_size / ours[tuple((places + box // 2).astype(int).T)]
    for side in (places[:, 0] < -0.15 * box, places[:, 0] > 0.15 * box):
        assert side.sum() > 20
        assert abs(np.median(at_places[side]) - np.median(shells[side])) < 2
    inner = (radius(box) < 0.35 * box) & (theirs > 0)
    assert np.corrcoef(1 / ours[inner], 1 / theirs[inner])[0, 1] > 0.9
    # RELION filters the sum of the half maps, not their mean
    assert np.corrcoef(our_map[inner], their_map[inner])[0, 1] > 0.98
    slope = np.vdot(their_map[inner], our_map[inner]) / np.vdot(our_map[inner], our_map[inner])
    assert slope == pytest.approx(2, rel=0.1)


def test_a_particle_agrees_within_a_shell_or_two(relion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = half_maps(64, 2.0, 250.0, 0.3)
    mrc.write_volume(HALF1, made.half1, 2.0)
    mrc.write_volume(HALF2, made.half2, 2.0)
    (ours, our_map), (theirs, their_map) = both(relion)
    places, shells = relion_points(64, 2.0)
    index = tuple((places + 32).astype(int).T)
    inside = made.support[index]
    assert inside.sum() > 10
    assert abs(np.median(128 / ours[index][inside]) - np.median(shells[inside])) < 2
    assert np.median(shells[inside]) < 29
    voxels = made.support & (theirs > 0)
    assert np.corrcoef(our_map[voxels], their_map[voxels])[0, 1] > 0.98

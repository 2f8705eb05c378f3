"""RELION reads what `spa import` writes: micrographs, and coordinates with which it extracts the right pixels."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from spa.cli import main
from spa.io import mrc, star

BOX = 16
CENTRES = [(40, 28), (20, 64), (90, 33)]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_relion_extracts_at_imported_coordinates(relion: Path) -> None:
    image = np.random.default_rng(2).normal(size=(96, 128)).astype(np.float32)
    for name in ("foo", "bar"):
        Path("Micrographs").mkdir(exist_ok=True)
        mrc.write_stack(f"Micrographs/{name}.mrc", image, 1.5)
    boxes = [f"{x - BOX // 2} {y - BOX // 2} {BOX} {BOX}" for x, y in CENTRES]
    for name in ("foo", "bar"):
        Path(f"{name}.box").write_text("\n".join(boxes) + "\n")
    assert main.run(["import", "--i", "Micrographs/*.mrc", "--odir", "Import/job001/"]) == 0
    known = ["--micrographs", "Import/job001/micrographs.star"]
    assert main.run(["import", "--i", "*.box", "--odir", "Import/job002/", *known]) == 0
    command = [relion / "relion_preprocess", "--i", "Import/job001/micrographs.star", "--coord_dir", "Import/job002/"]
    command += ["--coord_suffix", "_coords.star", "--part_star", "Extract/particles.star", "--part_dir", "Extract/"]
    Path("Extract").mkdir()
    subprocess.run([*command, "--extract", "--extract_size", str(BOX)], check=True, capture_output=True)
    found = star.read("Extract/particles.star")
    assert found["optics"].get_float("rlnVoltage") == 300
    assert found["optics"].get_float("rlnImagePixelSize") == 1.5
    particles = found["particles"]
    assert len(particles) == 2 * len(CENTRES)
    for name, (x, y) in zip(particles.text("rlnImageName"), CENTRES * 2, strict=True):
        number, _, stack = name.partition("@")
        half = BOX // 2
        extracted = mrc.StackReader().read(stack, int(number) - 1)
        np.testing.assert_allclose(extracted, image[y - half : y + half, x - half : x + half], rtol=1e-6)

"""A small made-up atomic model, quick to simulate."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_model(path: Path, seed: int = 0, n: int = 300) -> Path:
    """Write a PDB file of `n` carbon atoms in a lopsided blob about 60 Å across."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(n, 3)) * [11.0, 8.0, 5.0]
    positions[: n // 4] = positions[: n // 4] * 0.4 + [14.0, 9.0, -6.0]
    lines = [
        f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 60.00           C"
        for i, (x, y, z) in enumerate(positions)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path

"""cryoSPARC tables for tests, with fields and types as in files that cryoSPARC wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

N = 7
BOX, PIXEL_SIZE = 128, 1.25
ROWS, COLUMNS = 4092, 5760

SLOTS: dict[str, list[tuple[Any, ...]]] = {
    "blob": [
        *(("path", "S40"), ("idx", "<u4"), ("shape", "<u4", (2,)), ("psize_A", "<f4"), ("sign", "<f4")),
        ("import_sig", "<u8"),
    ],
    "ctf": [
        *(("type", "S8"), ("exp_group_id", "<u4"), ("accel_kv", "<f4"), ("cs_mm", "<f4"), ("amp_contrast", "<f4")),
        *(("df1_A", "<f4"), ("df2_A", "<f4"), ("df_angle_rad", "<f4"), ("phase_shift_rad", "<f4"), ("scale", "<f4")),
        *(("scale_const", "<f4"), ("ctf_fit_to_A", "<f4"), ("shift_A", "<f4", (2,)), ("tilt_A", "<f4", (2,))),
        *(("trefoil_A", "<f4", (2,)), ("tetra_A", "<f4", (4,)), ("anisomag", "<f4", (4,)), ("bfactor", "<f4")),
    ],
    "alignments3D": [
        *(("split", "<u4"), ("shift", "<f4", (2,)), ("pose", "<f4", (3,)), ("psize_A", "<f4"), ("error", "<f4")),
        *(("alpha", "<f4"), ("class_posterior", "<f4"), ("class", "<u4"), ("class_ess", "<f4")),
    ],
    "location": [
        *(("micrograph_uid", "<u8"), ("exp_group_id", "<u4"), ("micrograph_path", "S40")),
        *(("micrograph_shape", "<u4", (2,)), ("center_x_frac", "<f4"), ("center_y_frac", "<f4")),
        ("micrograph_psize_A", "<f4"),
    ],
}
SLOTS["alignments2D"] = [("pose", "<f4") if field[0] == "pose" else field for field in SLOTS["alignments3D"]]
DEFAULT = ("blob", "ctf", "alignments3D", "location")


def cs_table(*slots: str, n: int = N, seed: int = 1) -> np.ndarray:
    """Particles of two exposure groups, all of them different; with `slots`, or those of a refinement."""
    slots = slots or DEFAULT
    fields = [("uid", "<u8"), *((f"{slot}/{name}", *kind) for slot in slots for name, *kind in _fields(slot))]
    rows = np.zeros(n, dtype=fields)
    rng = np.random.default_rng(seed)
    rows["uid"] = rng.integers(1 << 63, (1 << 64) - 1, n, dtype=np.uint64)
    group = np.arange(n) % 2
    values: dict[str, Any] = {
        "blob/path": [f"J5/extract/{i // 3}_mic_particles.mrc".encode() for i in range(n)],
        "blob/idx": np.arange(n) * 3,
        "blob/shape": [BOX, BOX],
        "blob/psize_A": PIXEL_SIZE,
        "blob/sign": -1,
        "ctf/type": b"spline",
        "ctf/exp_group_id": 3 + group,
        "ctf/accel_kv": np.array([300, 200])[group],
        "ctf/cs_mm": np.array([2.7, 1.4])[group],
        "ctf/amp_contrast": 0.1,
        "ctf/df1_A": rng.uniform(15000, 20000, n),
        "ctf/df2_A": rng.uniform(10000, 15000, n),
        "ctf/df_angle_rad": rng.uniform(-3, 6, n),
        "ctf/phase_shift_rad": rng.uniform(0, 3, n),
        "ctf/scale": rng.uniform(0.5, 1, n),
        "ctf/bfactor": rng.uniform(-5, 50, n),
        "ctf/scale_const": 1,
        "ctf/ctf_fit_to_A": rng.uniform(3, 5, n),
        **{f"ctf/{name}_A": rng.normal(0, 3000, (2, 2))[group] for name in ("tilt", "trefoil")},
        "ctf/shift_A": rng.normal(0, 1, (2, 2))[group],
        "ctf/tetra_A": rng.normal(0, 30000, (2, 4))[group],
        "ctf/anisomag": rng.normal(0, 0.01, (2, 4))[group],
        "location/micrograph_path": [f"J3/{i // 3}_mic.mrc".encode() for i in range(n)],
        "location/micrograph_uid": np.arange(n) // 3,
        "location/exp_group_id": 3 + group,
        "location/micrograph_shape": [ROWS, COLUMNS],
        "location/center_x_frac": rng.uniform(0, 1, n),
        "location/center_y_frac": rng.uniform(0, 1, n),
        "location/micrograph_psize_A": 0.82,
    }
    for slot in (slot for slot in slots if slot.startswith("alignments")):
        vectors = rng.normal(size=(n, 3))
        vectors *= (rng.uniform(0.1, 3, n) / np.linalg.norm(vectors, axis=1))[:, None]
        values |= {
            f"{slot}/split": (np.arange(n) % 3 > 0).astype(int),
            f"{slot}/shift": rng.normal(0, 5, (n, 2)),
            f"{slot}/pose": vectors if slot != "alignments2D" else rng.uniform(-3, 3, n),
            f"{slot}/psize_A": PIXEL_SIZE,
            f"{slot}/error": rng.uniform(1, 2, n),
            f"{slot}/alpha": 1,
            f"{slot}/class_posterior": rng.uniform(0.5, 1, n),
            f"{slot}/class": np.arange(n) % 4,
            f"{slot}/class_ess": 1,
        }
    for name in rows.dtype.names or ():
        if name in values:
            rows[name] = values[name]
    return rows


def _fields(slot: str) -> list[tuple[Any, ...]]:
    """Fields of a slot; those of several 3D classes are like those of a refinement."""
    return SLOTS["alignments3D" if slot.startswith("alignments_class_") else slot]


def write_cs(path: str, rows: np.ndarray) -> str:
    with Path(path).open("wb") as handle:
        np.save(handle, rows)
    return path


def fields_of(rows: np.ndarray, *names: str) -> np.ndarray:
    """A table of some of the fields only."""
    part = np.empty(len(rows), dtype=[(name, rows.dtype[name]) for name in names])
    for name in names:
        part[name] = rows[name]
    return part


def assert_same(found: np.ndarray, expected: np.ndarray, rtol: float = 3e-6, leave: tuple[str, ...] = ()) -> None:
    """All fields of `expected` but those of `leave` are in `found`, numbers to single precision and six decimals."""
    for name in expected.dtype.names or ():
        if name not in leave:
            if expected[name].dtype.kind == "f":
                scale = np.abs(expected[name]).max() or 1.0
                np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=rtol * scale, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)

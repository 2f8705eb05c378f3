"""Resolution from half maps: signal beyond the alignment counts, what the alignment makes does not."""

from __future__ import annotations

import numpy as np
import pytest

from spa.em.validation import LEAK_SHELLS, half_map_fsc
from spa.fourier import forward, inverse
from spa.grids import rfft_shells
from spa.mask import soft_sphere

BOX, KMAX = 48, 23
SPHERE = np.asarray(soft_sphere(BOX, 14, 4))


def white(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BOX,) * 3).astype(np.float32)


def up_to(volume: np.ndarray, shell: int) -> np.ndarray:
    return np.asarray(inverse(forward(volume, 3) * (rfft_shells(BOX, 3) <= shell), BOX, 3), np.float32)


def halves(shared_shell: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two noise maps that share content up to a shell, as noise aligned on one reference would."""
    common = strength * up_to(white(seed), shared_shell)
    return common + white(seed + 1000), common + white(seed + 2000)


@pytest.mark.parametrize("strength", [3.0, 30.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_agreement_made_by_the_alignment_is_not_resolution(seed: int, strength: float) -> None:
    a, b = halves(6, strength, seed)
    found = half_map_fsc(a, b, SPHERE, 6, KMAX, 1)
    assert found.shell <= 6 + LEAK_SHELLS
    assert (found.curve[6 + LEAK_SHELLS + 1 :] <= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_signal_inside_the_sphere_beyond_the_alignment_is(seed: int) -> None:
    signal = 4 * up_to(white(seed), 15) * SPHERE
    found = half_map_fsc(signal + white(seed + 1000), signal + white(seed + 2000), SPHERE, 6, KMAX, 1)
    assert 14 <= found.shell <= 19
    assert found.curve[8:15].min() > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_signal_beyond_the_alignment_shows_beside_far_stronger_lower_shells(seed: int) -> None:
    signal = up_to(4 * up_to(white(seed), 15) * SPHERE, 15) + up_to(1000 * up_to(white(seed + 50), 5) * SPHERE, 5)
    found = half_map_fsc(signal + white(seed + 1000), signal + white(seed + 2000), SPHERE, 6, KMAX, 1)
    assert 13 <= found.shell <= 17


def test_symmetry_copies_are_no_evidence() -> None:
    """A weak agreement that convinces without symmetry does not when it is the same evidence 60 times."""
    signal = 0.35 * up_to(white(5), 9) * SPHERE
    low = 4 * up_to(white(6), 6) * SPHERE
    a, b = low + signal + white(1005), low + signal + white(2005)
    alone = half_map_fsc(a, b, SPHERE, 4, KMAX, 1)
    assert half_map_fsc(a, b, SPHERE, 4, KMAX, 600).shell <= 4 + LEAK_SHELLS < alone.shell


def test_alignment_to_the_last_shell_leaves_the_curve_as_it_is() -> None:
    a, b = halves(KMAX, 2.0, 3)
    found = half_map_fsc(a, b, SPHERE, KMAX, KMAX, 1)
    assert found.shell >= KMAX - 1

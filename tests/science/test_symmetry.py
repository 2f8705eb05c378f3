import numpy as np
import pytest

from spa import symmetry
from spa.errors import InputError
from spa.euler import random_rotations

ORDERS = {
    "C1": 1,
    "C4": 4,
    "C13": 13,
    "D2": 4,
    "D7": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I2": 60,
    "I3": 60,
    "I4": 60,
}


@pytest.mark.parametrize("group", ORDERS)
def test_operators_form_a_group_of_rotations(group):
    h = symmetry.operators(group)
    assert h.shape == (ORDERS[group], 3, 3)
    np.testing.assert_array_equal(h[0], np.eye(3))
    np.testing.assert_allclose(h @ h.swapaxes(1, 2), np.broadcast_to(np.eye(3), h.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(h), 1)
    products = np.einsum("aij,bjk->abik", h, h).reshape(-1, 1, 3, 3)
    nearest = np.abs(products - h).max(axis=(2, 3))
    assert nearest.min(axis=1).max() < 1e-9
    assert np.all((nearest < 1e-6).sum(axis=1) == 1)


def test_d2_and_o_are_exact_signed_permutations():
    for group in ("D2", "O"):
        assert set(np.unique(symmetry.operators(group))) == {-1, 0, 1}


def test_i_is_i2_and_names_ignore_case():
    np.testing.assert_array_equal(symmetry.operators("i"), symmetry.operators("I2"))
    np.testing.assert_array_equal(symmetry.operators("d7"), symmetry.operators("D7"))


@pytest.mark.parametrize("group", ["C0", "D", "X3", "I5", "", "C1.5", "C-2"])
def test_unknown_groups_are_refused_by_name(group):
    with pytest.raises(InputError, match=f"'{group}'.*expected Cn"):
        symmetry.operators(group)


@pytest.mark.parametrize("group", ORDERS)
def test_images_of_the_asymmetric_unit_cover_the_sphere_once(group):
    h = symmetry.operators(group)
    directions = random_rotations(5000, np.random.default_rng(4))[:, 2]
    times = sum(symmetry.asymmetric_unit(directions @ g.T, h).astype(int) for g in h)
    np.testing.assert_array_equal(times, 1)
    assert symmetry.asymmetric_unit(directions, h).mean() == pytest.approx(1 / len(h), abs=4 / np.sqrt(5000 * len(h)))


@pytest.mark.parametrize("group", ["C3", "D2", "T", "I2"])
def test_the_margin_takes_in_all_directions_that_close_to_the_unit(group):
    h, margin = symmetry.operators(group), 4.0
    rng = np.random.default_rng(6)
    directions = random_rotations(20000, rng)[:, 2]
    inside = directions[symmetry.asymmetric_unit(directions, h)]
    step = rng.standard_normal(inside.shape)
    step -= inside * np.sum(step * inside, axis=1, keepdims=True)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    angle = np.radians(margin) * 0.999
    assert np.all(symmetry.asymmetric_unit(np.cos(angle) * inside + np.sin(angle) * step, h, margin))
    wide = symmetry.asymmetric_unit(directions, h, margin).mean()
    assert 1 / len(h) < wide < 1

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spa import euler
from spa.symmetry import operators

degrees = st.floats(-180, 180, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(degrees, st.floats(0, 180), degrees)
def test_angles_give_the_matrix_back(rot, tilt, psi):
    a = euler.matrix(rot, tilt, psi)
    result = euler.angles(a)
    np.testing.assert_allclose(euler.matrix(*result.T), a, atol=2e-7)
    assert np.all(np.abs(result[:, [0, 2]]) <= 180)
    assert 0 <= result[0, 1] <= 180


def test_matrix_entries_are_those_of_the_zyz_convention():
    rot, tilt, psi = np.radians([20, 50, 75])
    ca, sa, cb, sb, cg, sg = np.cos(rot), np.sin(rot), np.cos(tilt), np.sin(tilt), np.cos(psi), np.sin(psi)
    expected = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    np.testing.assert_allclose(euler.matrix(20, 50, 75)[0], expected, atol=1e-12)


@pytest.mark.parametrize(("given_angles", "expected"), [((30, 0, 40), (0, 0, 70)), ((30, 180, 40), (0, 180, 10))])
def test_at_the_poles_rot_is_zero(given_angles, expected):
    np.testing.assert_allclose(euler.angles(euler.matrix(*given_angles))[0], expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 180), st.integers(0, 1000))
def test_angular_distance_is_the_angle_of_the_relative_rotation(angle, seed):
    rng = np.random.default_rng(seed)
    a = euler.random_rotations(1, rng)
    axis = rng.standard_normal(3)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(angle)).as_matrix()
    assert euler.angular_distance(turn @ a, a)[0] == pytest.approx(angle, rel=1e-5)
    assert euler.angular_distance(a @ turn, a)[0] == pytest.approx(angle, rel=1e-5)


@pytest.mark.parametrize("group", ["C4", "D2", "O"])
def test_symmetry_copies_are_at_distance_zero(group):
    a = euler.random_rotations(20, np.random.default_rng(1))
    for h in operators(group):
        assert euler.angular_distance(a @ h, a, operators(group)).max() < 1e-5
    assert np.all(euler.angular_distance(a[1:], a[:-1], operators(group)) <= euler.angular_distance(a[1:], a[:-1]))


def test_the_sum_of_a_cloud_around_a_rotation_is_nearest_to_it():
    rng = np.random.default_rng(3)
    centre = euler.random_rotations(1, rng)[0]
    turns = rng.normal(0, 0.1, (50, 3))
    cloud = Rotation.from_rotvec(np.concatenate([turns, -turns])).as_matrix() @ centre
    assert euler.angular_distance(euler.nearest_rotation(cloud.sum(0)), centre)[0] < 1e-6


def test_nearest_rotation_is_proper_even_for_a_mirror():
    mirrored = np.diag([1.0, 1.0, -1.0]) @ euler.random_rotations(5, np.random.default_rng(2))
    nearest = euler.nearest_rotation(mirrored)
    np.testing.assert_allclose(np.linalg.det(nearest), 1)
    np.testing.assert_allclose(nearest @ nearest.swapaxes(1, 2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12)


def test_random_rotations_have_uniform_view_directions_and_repeat_with_the_seed():
    a = euler.random_rotations(20000, np.random.default_rng(8))
    np.testing.assert_allclose(a.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.einsum("ni,nj->ij", a[:, 2], a[:, 2]) / len(a), np.eye(3) / 3, atol=0.01)
    np.testing.assert_array_equal(a, euler.random_rotations(20000, np.random.default_rng(8)))

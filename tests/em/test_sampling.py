"""The tree of grids: children surround their parents, ragged lists agree with plain Python."""

import numpy as np
import pytest

from spa import euler
from spa.em.sampling import (
    Candidates,
    children,
    from_dense,
    image_slice,
    keep,
    make_level,
    neighbourhood,
    segment_index,
    united,
)


@pytest.fixture
def turn() -> np.ndarray:
    return np.asarray(euler.random_rotations(1, np.random.default_rng(4)))[0]


def single(orientation: int, shifts: list[int]) -> Candidates:
    return Candidates(
        np.array([0, 1]), np.array([orientation]), np.array([0, len(shifts)]), np.array(shifts, dtype=np.int32)
    )


@pytest.mark.parametrize("orientation", [0, 17, 500, 2000])
def test_children_surround_their_parent(turn: np.ndarray, orientation: int) -> None:
    parent = make_level(1, 2.0, 5, 4, turn, 1)
    child = make_level(2, 1.0, 10, 4, turn, 1)
    orientation %= parent.n_directions * parent.n_psi
    found = children(single(orientation, [7, 24]), parent, child)
    assert len(found.orientation) == 8
    assert np.all(np.diff(found.group_offsets) == 8)
    mine = parent.rotations(np.array([orientation]))
    angles = euler.angular_distance(child.rotations(found.orientation), np.repeat(mine, 8, 0))
    assert angles.max() < 1.1 * parent.angular_step
    psi = child.psi(found.orientation % child.n_psi).reshape(4, 2).mean(1)
    np.testing.assert_allclose(psi, parent.psi(orientation % parent.n_psi), atol=1e-12)
    offsets = child.offsets()[found.shift[:8]].reshape(2, 4, 2).mean(1)
    np.testing.assert_allclose(offsets, parent.offsets()[[7, 24]], atol=1e-6)


def test_children_keep_shifts_where_the_grid_is_the_same(turn: np.ndarray) -> None:
    parent, child = make_level(1, 2.0, 5, 4, turn, 1), make_level(2, 2.0, 5, 4, turn, 1)
    found = children(single(3, [1, 9, 12]), parent, child)
    np.testing.assert_array_equal(found.shift.reshape(8, 3), np.tile([1, 9, 12], (8, 1)))


def test_every_direction_and_angle_has_one_parent(turn: np.ndarray) -> None:
    parent, child = make_level(0, 1.0, 1, 4, turn, 0), make_level(1, 1.0, 1, 4, turn, 0)
    everything = np.arange(parent.n_directions * parent.n_psi)
    groups = len(everything)
    all_of_it = Candidates(np.array([0, groups]), everything, np.arange(groups + 1), np.zeros(groups, dtype=np.int32))
    found = children(all_of_it, parent, child).orientation
    np.testing.assert_array_equal(np.sort(found), np.arange(child.n_directions * child.n_psi))


def test_orientations_of_several_classes_stay_in_their_class(turn: np.ndarray) -> None:
    parent, child = make_level(0, 1.0, 1, 4, turn, 0), make_level(1, 1.0, 1, 4, turn, 0)
    in_class_two = 2 * parent.n_directions * parent.n_psi + 31
    found = children(single(in_class_two, [0]), parent, child)
    np.testing.assert_array_equal(child.classes(found.orientation), np.full(8, 2))


def test_keep_from_dense_and_image_slice_agree_with_plain_lists() -> None:
    rng = np.random.default_rng(0)
    n_images, orientations, shifts = 3, np.array([4, 9, 11, 30]), np.array([2, 5], dtype=np.int32)
    dense = rng.random((n_images, len(orientations), len(shifts))) < 0.5
    dense[1] = False
    found = from_dense(np.nonzero(dense.ravel())[0], orientations, n_images, shifts)
    assert as_lists(found) == [
        [
            (int(o), [int(s) for s, k in zip(shifts, row, strict=True) if k])
            for o, row in zip(orientations, d, strict=True)
            if row.any()
        ]
        for d in dense
    ]
    mask = rng.random(len(found.shift)) < 0.5
    flat = iter(mask)
    expected = []
    for image in as_lists(found):
        kept = [(o, [s for s in group if next(flat)]) for o, group in image]
        expected.append([(o, group) for o, group in kept if group])
    assert as_lists(keep(found, mask)) == expected
    assert as_lists(image_slice(found, 1, 3)) == as_lists(found)[1:3]


def test_united_lists_hold_every_candidate_once(turn: np.ndarray) -> None:
    level, rng = make_level(1, 1.0, 3, 4, turn, 1), np.random.default_rng(3)
    dense = rng.random((2, 4, 30, 9)) < 0.1
    dense[0, 1], dense[1, 2], dense[:, 3] = False, False, False
    orientations, shifts = np.sort(rng.choice(288, 30, replace=False)), np.arange(9, dtype=np.int32)
    first, second, both = (
        from_dense(np.nonzero(d.ravel())[0], orientations, 4, shifts) for d in (*dense, dense[0] | dense[1])
    )
    assert as_lists(united(first, second, level)) == as_lists(both)
    assert as_lists(united(second, second, level)) == as_lists(second)


def as_lists(candidates: Candidates) -> list[list[tuple[int, list[int]]]]:
    images = []
    for g0, g1 in zip(candidates.image_offsets[:-1], candidates.image_offsets[1:], strict=True):
        groups = []
        for g in range(g0, g1):
            c0, c1 = candidates.group_offsets[g : g + 2]
            groups.append((int(candidates.orientation[g]), [int(s) for s in candidates.shift[c0:c1]]))
        images.append(groups)
    return images


def test_neighbourhood_holds_the_pose(turn: np.ndarray) -> None:
    level = make_level(3, 0.5, 5, 8, turn, 3)
    poses = np.asarray(euler.random_rotations(50, np.random.default_rng(2)))
    found = neighbourhood(level, poses, 9, 1, 2)
    rotations = level.rotations(found.orientation).reshape(50, -1, 3, 3)
    nearest = [
        euler.angular_distance(r, np.repeat(p[None], len(r), 0)).min() for r, p in zip(rotations, poses, strict=True)
    ]
    assert max(nearest) < level.angular_step
    farthest = [
        euler.angular_distance(r, np.repeat(p[None], len(r), 0)).max() for r, p in zip(rotations, poses, strict=True)
    ]
    assert max(farthest) < 4.5 * level.angular_step
    offsets = level.offsets()[found.shift[: found.group_offsets[1]]]
    assert len(offsets) == 13
    assert np.hypot(*offsets.T).max() == pytest.approx(1.0)


def test_segment_index_skips_empty_segments() -> None:
    np.testing.assert_array_equal(segment_index(np.array([0, 2, 2, 5]), 5), [0, 0, 2, 2, 2])

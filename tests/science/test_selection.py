"""Ranges, duplicates and parts: what is kept follows from the definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from spa import selection


def test_limits_are_inclusive_and_may_be_open():
    values = [1.0, 2.0, 3.0, 4.0]
    assert selection.in_range(values, 2, 3).tolist() == [False, True, True, False]
    assert selection.in_range(values, None, 3).tolist() == [True, True, True, False]
    assert selection.in_range(values, 2, None).tolist() == [False, True, True, True]


def test_the_better_of_a_pair_stays_and_in_its_own_micrograph_only():
    places = [(0, 0), (3, 4), (0, 0), (100, 100)]
    groups = [0, 0, 1, 0]
    assert selection.distinct(places, groups, 5, [1, 2, 0, 0]).tolist() == [False, True, True, True]
    assert selection.distinct(places, groups, 5).tolist() == [True, False, True, True]
    assert selection.distinct(places, groups, 4.9).all()


def test_a_chain_loses_its_middle_not_its_end():
    places = [(0, 0), (4, 0), (8, 0)]
    assert selection.distinct(places, [0, 0, 0], 5).tolist() == [True, False, True]
    assert selection.distinct(places, [0, 0, 0], 5, [1, 9, 1]).tolist() == [False, True, False]


def test_nothing_kept_is_close_and_nothing_left_out_is_far():
    draw = np.random.default_rng(4)
    places, groups, score = draw.uniform(0, 100, (400, 2)), draw.integers(0, 3, 400), draw.uniform(size=400)
    keep = selection.distinct(places, groups, 8.0, score)
    for group in range(3):
        kept, lost = places[keep & (groups == group)], np.flatnonzero(~keep & (groups == group))
        between = cdist(kept, kept)
        assert between[~np.eye(len(kept), dtype=bool)].min() > 8
        near = cdist(places[lost], kept) <= 8
        assert near.any(axis=1).all()
        best = np.where(near, score[keep & (groups == group)], -1).max(axis=1)
        assert (best >= score[lost]).all()


def test_no_rows_stay_no_rows():
    assert selection.distinct(np.zeros((0, 2)), np.zeros(0, int), 5).shape == (0,)
    assert [len(part) for part in selection.split(0, 2, None)] == [0, 0]


@pytest.mark.parametrize(
    ("parts", "size", "lengths"), [(3, None, [6, 6, 4]), (None, 5, [5, 5, 5, 1]), (2, 5, [5, 5]), (4, 8, [8, 8, 0, 0])]
)
@pytest.mark.parametrize("seed", [None, 1])
def test_parts_share_no_row(parts, size, lengths, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    found = selection.split(16, parts, size, rng)
    assert [len(part) for part in found] == lengths
    rows = np.concatenate(found)
    assert len(set(rows.tolist())) == len(rows)
    assert all((np.diff(part) > 0).all() for part in found)
    assert np.array_equal(rows, np.arange(len(rows))) == (seed is None)


def test_parts_need_a_number_or_a_size():
    with pytest.raises(ValueError, match="number of parts"):
        selection.split(10, None, None)


def test_numbers_in_words():
    assert selection.ranges([4, 1, 2, 3, 7, 8, 11]) == "1-4, 7, 8, 11"
    assert selection.ranges([]) == ""

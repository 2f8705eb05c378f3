"""Matching picks to a truth, curves over the threshold, and consensus, against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spa.picking_evaluation import consensus, curve, match

TRUTH = np.array([[10.0, 10.0], [50.0, 10.0], [10.0, 50.0], [90.0, 90.0]])
PICKS = np.array([[11.0, 10.0], [9.0, 10.0], [50.0, 14.0], [70.0, 70.0]])
SCORE = np.array([9.0, 8.0, 7.0, 6.0])


def test_each_truth_is_matched_once_and_by_the_better_pick():
    matched, offset = match(PICKS, SCORE, TRUTH, 5.0)
    assert matched.tolist() == [0, -1, 1, -1]
    assert offset[[0, 2]].tolist() == [1.0, 4.0]
    assert match(PICKS, -SCORE, TRUTH, 5.0)[0].tolist() == [-1, 0, 1, -1]


def test_the_curve_counts_picks_above_each_threshold():
    found = curve([(PICKS, SCORE, TRUTH, 2.0)], 10.0)
    assert found.threshold.tolist() == [6, 7, 8, 9]
    assert found.precision.tolist() == pytest.approx([1 / 2, 2 / 3, 1 / 2, 1])
    assert found.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 4, 1 / 4])
    assert found.f1[0] == pytest.approx(0.5)
    assert found.best == 1
    assert sorted(found.offset) == [2.0, 8.0]


def test_equal_scores_stand_or_fall_together():
    found = curve([(PICKS, np.ones(4), TRUTH, 2.0)], 10.0)
    assert found.threshold.tolist() == [1.0]
    assert found.precision.tolist() == [0.5]


def test_micrographs_without_picks_count_in_the_recall():
    nothing = (np.zeros((0, 2)), np.zeros(0), TRUTH, 2.0)
    assert curve([(PICKS, SCORE, TRUTH, 2.0), nothing], 10.0).recall[0] == pytest.approx(2 / 8)


def test_consensus_keeps_what_enough_sets_have():
    second = (np.array([[12.0, 10.0], [71.0, 70.0]]), np.array([0.1, 0.9]))
    third = (np.array([[13.0, 10.0]]), np.array([5.0]))
    sets = [(PICKS[[0, 2, 3]], SCORE[[0, 2, 3]]), second, third]
    centres, score, number = consensus(sets, 5.0, 2)
    assert len(centres) == 2
    assert np.allclose(centres[np.argmax(number)], (12.0, 10.0))
    assert sorted(number.tolist()) == [2, 3]
    assert np.all((score > 0) & (score <= 1))
    assert len(consensus(sets, 5.0, 3)[0]) == 1
    assert len(consensus(sets, 5.0, 1)[0]) == 3


def test_a_set_has_no_say_twice():
    one = (np.array([[10.0, 10.0], [12.0, 10.0]]), np.array([2.0, 1.0]))
    assert len(consensus([one, (np.zeros((0, 2)), np.zeros(0))], 5.0, 2)[0]) == 0

"""How good picks are: matched to the truth, counted over thresholds, and what several sets of picks agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """Picks counted over the threshold.

    threshold : float64 (n,), rising. precision, recall, f1 : like it, of the picks that score at least as high.
    offset : float64 (m,), distances of the matched picks from the truth. n_picks, n_truth : how many there are.
    """

    threshold: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    offset: Floats
    n_picks: int
    n_truth: int

    @property
    def best(self) -> int:
        """Where F1 is highest."""
        return int(np.argmax(self.f1))


def match(picks: Floats, score: Floats, truth: Floats, distance: float) -> tuple[Ints, Floats]:
    """For each pick the truth it matches (-1 for none) and how far it is, each (n,).

    picks (n, 2), truth (m, 2) : centres. In the order of their scores, picks take the nearest that is free.
    """
    matched, offset = np.full(len(picks), -1), np.zeros(len(picks))
    if not len(picks) or not len(truth):
        return matched, offset
    tree = cKDTree(truth)
    free = np.ones(len(truth), dtype=bool)
    for i in np.argsort(-score, kind="stable"):
        near = np.array(tree.query_ball_point(picks[i], distance), dtype=np.int64)
        near = near[free[near]]
        if len(near):
            distances = np.hypot(*(truth[near] - picks[i]).T)
            matched[i], offset[i] = near[np.argmin(distances)], distances.min()
            free[matched[i]] = False
    return matched, offset


def curve(parts: Sequence[tuple[Floats, Floats, Floats, float]], distance: float) -> Curve:
    """Precision and recall of picks over all micrographs.

    Parameters
    ----------
    parts : of each micrograph the picks (n, 2), their scores (n,), the truth (m, 2), and the pixel size in Angstrom.
    distance : Angstrom within which a pick matches.
    """
    scores, good, offsets = [], [], []
    for picks, score, truth, pixel_size in parts:
        matched, offset = match(picks, score, truth, distance / pixel_size)
        scores.append(score)
        good.append(matched >= 0)
        offsets.append(pixel_size * offset[matched >= 0])
    n_truth = sum(len(part[2]) for part in parts)
    score, hit = np.concatenate(scores), np.concatenate(good)
    order = np.argsort(-score, kind="stable")
    hits, n = np.cumsum(hit[order]), np.arange(1, len(order) + 1)
    last = np.append(np.diff(score[order]) != 0, True)[: len(order)]  # equal scores stand or fall together
    precision, recall = hits[last] / n[last], hits[last] / max(n_truth, 1)
    f1 = 2 * hits[last] / (n[last] + n_truth)
    return Curve(
        score[order][last][::-1],
        precision[::-1],
        recall[::-1],
        f1[::-1],
        np.concatenate(offsets),
        len(score),
        n_truth,
    )


def consensus(sets: Sequence[tuple[Floats, Floats]], distance: float, at_least: int) -> tuple[Floats, Floats, Ints]:
    """What several sets of picks of one micrograph agree on.

    Parameters
    ----------
    sets : of each picker its centres (n, 2) and scores (n,). distance : within which centres are one particle.
    at_least : number of sets that must have it.

    Returns
    -------
    Centres (the mean of those that agree), scores and numbers of sets. A score is the mean over all sets of the
    rank within each, 0 to 1, since scores of different pickers have different scales; it is 0 where a set has none.
    """
    centres = np.concatenate([part[0] for part in sets]).reshape(-1, 2)
    owner = np.repeat(np.arange(len(sets)), [len(part[0]) for part in sets])
    rank = np.concatenate([_ranks(part[1]) for part in sets])
    free = np.ones(len(centres), dtype=bool)
    found: list[tuple[Floats, float, int]] = []
    if len(centres):
        tree = cKDTree(centres)
        for i in np.argsort(-rank, kind="stable"):
            if not free[i]:
                continue
            near = np.array(tree.query_ball_point(centres[i], distance), dtype=np.int64)
            near = near[free[near] & ((owner[near] != owner[i]) | (near == i))]
            near = near[np.argsort(np.hypot(*(centres[near] - centres[i]).T), kind="stable")]
            _, first = np.unique(owner[near], return_index=True)
            group = near[first]
            free[group] = False
            if len(group) >= at_least:
                found.append((centres[group].mean(axis=0), float(rank[group].sum() / len(sets)), len(group)))
    found.sort(key=lambda one: -one[1])
    return (
        np.array([one[0] for one in found]).reshape(-1, 2),
        np.array([one[1] for one in found]),
        np.array([one[2] for one in found], dtype=np.int64),
    )


def _ranks(score: Floats) -> Floats:
    """Ranks between 0 and 1, the highest for the best."""
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1) / max(len(score), 1)
    return ranks

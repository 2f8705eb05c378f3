"""How sure and how reproducible a classification is: entropy, migration, agreement of repeats, the stable core.

Assignments are class numbers, int (n,), any whole numbers; only which particles share one matters, except where said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ALIKE = 0.2
"""Adjusted Rand index of repeated runs below which their classes are no property of the particles."""


def entropy(posterior: ArrayLike) -> Floats:
    """Entropy of each particle's class posterior over that of an even one: float64 (n,), 0 sure, 1 no idea.

    Parameters
    ----------
    posterior : float (n, n_classes), not negative; rows need not add up to 1. A row of zeros counts as even, and with
        one class there is nothing to be unsure of.
    """
    weights = np.asarray(posterior, dtype=np.float64)
    n_classes = weights.shape[1]
    if n_classes < 2:
        return np.zeros(len(weights))
    total = weights.sum(axis=1, keepdims=True)
    p = np.divide(weights, total, out=np.full_like(weights, 1 / n_classes), where=total > 0)
    terms = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0)
    return np.asarray(np.clip(terms.sum(axis=1) / np.log(n_classes), 0, 1))


def posterior_of_repeats(repeats: Sequence[ArrayLike]) -> Floats:
    """How often repeated runs put each particle into each class of the first run, float64 (n, n_classes).

    Classes of the other runs take the numbers of those of the first that they share most particles with (`matched`);
    a class left over by the match gets a column of its own.
    """
    first = _dense(repeats[0])[1]
    aligned = [first, *(matched(first, repeat) for repeat in repeats[1:])]
    n_classes = 1 + max(int(classes.max(initial=0)) for classes in aligned)
    counts = np.zeros((len(first), n_classes))
    for classes in aligned:
        counts[np.arange(len(first)), classes] += 1
    return counts / len(aligned)


def migration(before: ArrayLike, after: ArrayLike) -> float:
    """Fraction of the particles whose class number is not that of the iteration before; 0 where there are none."""
    old, new = _pair(before, after)
    return float(np.mean(old != new)) if len(old) else 0.0


def contingency(a: ArrayLike, b: ArrayLike) -> Ints:
    """Particles that are in class i of `a` and class j of `b`, int64 (classes of a, classes of b), in rising order."""
    first, second = _pair(a, b)
    (names_a, rows), (names_b, columns) = _dense(first), _dense(second)
    table = np.zeros((len(names_a), len(names_b)), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def adjusted_rand(a: ArrayLike, b: ArrayLike) -> float:
    """Adjusted Rand index of two assignments: 1 the same up to the numbers, about 0 for chance, and possibly less.

    Two assignments that both put all particles into one class agree: 1.

    Notes: Hubert & Arabie 1985, J Classification 2:193, from pairs in the contingency table.
    """
    table = contingency(a, b)
    together = _pairs(table).sum()
    in_a, in_b = _pairs(table.sum(axis=1)).sum(), _pairs(table.sum(axis=0)).sum()
    expected = in_a * in_b / max(_pairs(table.sum()), 1)
    most = (in_a + in_b) / 2
    return 1.0 if most == expected else float((together - expected) / (most - expected))


def matched(a: ArrayLike, b: ArrayLike) -> Ints:
    """Assignment `b` with its classes renumbered as those of `a` that they share most particles with, int64 (n,).

    A class of `b` without a partner gets a number above all of `a`.

    Notes: the one-to-one match with the most shared particles, Kuhn 1955, Naval Res Logist Q 2:83 (Hungarian method).
    """
    first, second = _pair(a, b)
    if not len(first):
        return second
    table = contingency(first, second)
    names = np.unique(first)
    new = int(names.max()) + 1 + np.arange(table.shape[1])
    rows, columns = linear_sum_assignment(-table)
    shared = table[rows, columns] > 0
    new[columns[shared]] = names[rows[shared]]
    return np.asarray(new[_dense(second)[1]])


def agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Fraction of the particles that two assignments put into matching classes (`matched`); 1 where there are none."""
    first = _pair(a, b)[0]
    return float(np.mean(matched(first, b) == first)) if len(first) else 1.0


def stable_core(repeats: Sequence[ArrayLike], least: float = 1.0, smallest: int = 2) -> Ints:
    """Core that each particle belongs to, int64 (n,) from 1, by falling size; 0 for particles that are in none.

    Parameters
    ----------
    repeats : assignments of the same particles by several runs.
    least : fraction of the runs in which a particle must be in the class of its core, that of the first run, or in
        the one that matches it (`matched`). With two runs and classes drawn at random about one in n_classes is.
    smallest : particles that a core needs.

    Raises
    ------
    ValueError
        If there are less than two runs, or they differ in length.
    """
    if len(repeats) < 2:
        raise ValueError(f"{len(repeats)} runs: expected two or more to compare")
    first = _dense(_pair(repeats[0], repeats[-1])[0])[1]
    kept = posterior_of_repeats(repeats)[np.arange(len(first)), first] >= least - 1e-9
    group = np.where(kept, first, -1)
    names, counts = np.unique(group, return_counts=True)
    counts = np.where((names < 0) | (counts < smallest), 0, counts)
    order = np.argsort(-counts, kind="stable")
    number = np.zeros(len(names), dtype=np.int64)
    number[order] = np.where(counts[order] > 0, np.arange(1, len(names) + 1), 0)
    return np.asarray(number[np.searchsorted(names, group)])


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Ints, Ints]:
    first, second = (np.asarray(x, dtype=np.int64).ravel() for x in (a, b))
    if len(first) != len(second):
        raise ValueError(f"assignments of {len(first)} and {len(second)} particles: expected the same ones")
    return first, second


def _dense(classes: ArrayLike) -> tuple[Ints, Ints]:
    """The class numbers there are, rising, and the place of each particle's among them."""
    names, place = np.unique(np.asarray(classes, dtype=np.int64), return_inverse=True)
    return names, place.ravel()


def _pairs(counts: ArrayLike) -> Floats:
    """Number of pairs among `counts` things each."""
    n = np.asarray(counts, dtype=np.float64)
    return n * (n - 1) / 2

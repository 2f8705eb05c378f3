"""Which rows of a table to keep: by range, without duplicates, in parts; lists of numbers in words."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree


def in_range(values: ArrayLike, minimum: float | None, maximum: float | None) -> NDArray[np.bool_]:
    """Which values (n,) lie between the limits, both inclusive; None is no limit."""
    numbers = np.asarray(values, dtype=np.float64)
    low, high = -np.inf if minimum is None else minimum, np.inf if maximum is None else maximum
    return np.asarray((numbers >= low) & (numbers <= high))


def distinct(
    places: ArrayLike, groups: ArrayLike, distance: float, score: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which of n places to keep, so that no two of a group lie within `distance` of each other.

    Parameters
    ----------
    places : (n, 2).
    groups : the micrograph, as a number, of each, (n,).
    distance : in the unit of `places`; a pair exactly that far apart is a duplicate, too.
    score : (n,); of a pair the higher one stays, the first where they are equal or there is none.

    Notes
    -----
    Greedy: the best of all that are left stays, and takes its neighbours out.
    """
    points, group = np.asarray(places, dtype=np.float64).reshape(-1, 2), np.asarray(groups)
    keep = np.ones(len(points), dtype=bool)
    order = np.arange(len(points)) if score is None else np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    rank = np.empty(len(points), dtype=np.int64)
    rank[order] = np.arange(len(points))
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group])) + 1
    for members in np.split(by_group, starts):
        pairs = members[cKDTree(points[members]).query_pairs(distance, output_type="ndarray")]
        better = np.where((rank[pairs[:, 0]] < rank[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
        for first, second in better[np.argsort(rank[better[:, 0]], kind="stable")].tolist():
            if keep[first]:
                keep[second] = False
    return keep


def split(
    n: int, parts: int | None, size: int | None, rng: np.random.Generator | None = None
) -> list[NDArray[np.int64]]:
    """Rows 0 .. n - 1 in `parts` of `size`, in their order or, with `rng`, drawn at random; rows rise within a part.

    Without `size` the parts are as large as needed, the last one smaller; without `parts` there are as many as needed;
    with both the rest is left out, and parts beyond the rows are empty.

    Raises
    ------
    ValueError
        If neither is given.
    """
    if parts is None and size is None:
        raise ValueError("expected a number of parts or their size")
    if size is None:
        size = -(-n // (parts or 1))
    if parts is None:
        parts = -(-n // size)
    order = np.arange(n) if rng is None else rng.permutation(n)
    return [np.sort(order[i * size : (i + 1) * size]) for i in range(parts)]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as a list with runs of three or more joined, "1-4, 7, 8"; "" for none."""
    order = sorted(set(numbers))
    runs: list[list[int]] = []
    for number in order:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)

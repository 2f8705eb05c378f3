"""The built-in assembly: protein geometry, size, symmetry, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.distance import pdist

from spa import phantom, symmetry
from spa.atoms import Atoms

IDENTITY = np.eye(3)[None]


@pytest.fixture(scope="module")
def asymmetric() -> Atoms:
    return phantom.assembly(IDENTITY)


@pytest.fixture(scope="module")
def tetramer() -> Atoms:
    return phantom.assembly(symmetry.operators("D2"))


def _length(atoms: Atoms) -> float:
    return float(pdist(atoms.positions[ConvexHull(atoms.positions).vertices]).max())


@pytest.mark.parametrize(("kind", "rise", "turn"), [("helix", 1.5, 100.0), ("strand", 3.3, -170.0)])
def test_secondary_structure_has_the_rise_and_the_hand_of_proteins(kind: str, rise: float, turn: float) -> None:
    trace = phantom._ideal_backbone(kind, 20)[:, 1]
    angle = np.degrees(np.unwrap(np.arctan2(trace[:, 1], trace[:, 0])))
    assert np.allclose(np.diff(trace[:, 2]), rise, atol=0.1)
    assert np.diff(angle).mean() == pytest.approx(turn, abs=2.0)
    assert np.diff(angle).std() < 3.0
    assert np.allclose(np.linalg.norm(np.diff(trace, axis=0), axis=1), 3.8, atol=0.05)


def test_residues_are_of_the_l_form() -> None:
    n, ca, c, _ = phantom._ideal_backbone("helix", 3)[1]
    cb = phantom._side_chain(n, ca, c, 1, np.zeros(4))[0]
    # seen from the hydrogen, opposite to the three others, CO-R-N run clockwise
    assert np.dot(np.cross(c - ca, cb - ca), n - ca) > 0
    for bonded in (n, c):
        cosine = np.dot(cb - ca, bonded - ca) / np.linalg.norm(cb - ca) / np.linalg.norm(bonded - ca)
        assert np.degrees(np.arccos(cosine)) == pytest.approx(110.0, abs=4.0)


def test_assembly_is_the_size_it_says_and_centred(asymmetric: Atoms, tetramer: Atoms) -> None:
    assert 110 < _length(asymmetric) < 140
    assert 110 < _length(tetramer) < 140
    assert np.allclose(asymmetric.positions.mean(axis=0), 0, atol=1e-9)


def test_assembly_is_the_same_every_time(asymmetric: Atoms) -> None:
    again = phantom.assembly(IDENTITY)
    assert np.array_equal(asymmetric.positions, again.positions)
    assert np.array_equal(asymmetric.elements, again.elements)


def test_tetramer_obeys_its_operators_and_nothing_overlaps(tetramer: Atoms) -> None:
    tree = cKDTree(tetramer.positions)
    for operator in symmetry.operators("D2"):
        assert tree.query(tetramer.positions @ operator.T)[0].max() < 1e-6
    protomer = len(tetramer) // 4
    others = cKDTree(tetramer.positions[protomer:])
    assert others.query(tetramer.positions[:protomer])[0].min() > 2.0


def _overlap(atoms: Atoms, rotation: NDArray[np.float64]) -> float:
    """Fraction of atoms that land within 3 Å of an atom after a rotation."""
    return float((cKDTree(atoms.positions).query(atoms.positions @ rotation.T)[0] < 3.0).mean())


def test_asymmetric_assembly_looks_like_itself_from_one_side_only(asymmetric: Atoms) -> None:
    for operator in symmetry.operators("O")[1:]:
        assert _overlap(asymmetric, operator) < 0.7

"""A made-up protein assembly, the same on every machine: helices, sheets, barrels and loops, atom by atom.

Backbones follow ideal geometry (Ramachandran angles of alpha helices and beta strands), so that the density has
what a real one shows: rods with 5.4 Å turns, sheets with 4.8 Å strands, side chains, the right hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from spa.atoms import Atoms, joined

Floats = NDArray[np.float64]

_PHI_PSI = {"helix": (-57.0, -47.0), "strand": (-118.0, 128.0)}
_RISE = {"helix": 1.5, "strand": 3.3}
_STRAND_SPACING, _SHEET_TO_HELIX, _HELIX_SPACING = 4.8, 10.0, 9.6
_CLOSEST, _SAMPLE = 4.2, 3  # Å between neighbouring domains, measured on every third atom
_DIRECTIONS = 12  # tried for each domain
_SEED = 25


@dataclass(frozen=True)
class _Element:
    """A stretch of secondary structure: its middle and direction in Å."""

    kind: str
    n_residues: int
    middle: Floats
    direction: Floats


def assembly(operators: Floats) -> Atoms:
    """The built-in assembly with the symmetry of `operators`, centred on the symmetry axes.

    Parameters
    ----------
    operators : float64 (n, 3, 3), rotations of the point group, identity first.

    Returns
    -------
    Atoms: eleven domains, 130 Å at the longest, without any symmetry, when the identity is alone; else copies of a
    protomer of three domains that touch around the axes.
    """
    if len(operators) == 1:
        return _packed(_domains(11)).centred()
    protomer = _packed(_domains(3)).centred()
    turns = Rotation.random(12, random_state=_SEED).as_matrix()
    placed = [_around_axes(protomer.moved(turn, np.zeros(3)), operators) for turn in turns]
    return min((joined(copies) for copies in placed), key=Atoms.radius)


def _around_axes(protomer: Atoms, operators: Floats) -> list[Atoms]:
    """The symmetry copies of a protomer brought in along a general direction until they touch."""
    outward = np.array([0.66, 0.48, 0.58])

    def gap(distance: float) -> float:
        placed = protomer.positions[::_SAMPLE] + distance * outward
        tree = cKDTree(placed)
        return min(_nearest(tree, placed @ op.T) for op in operators[1:])

    placed = protomer.moved(np.eye(3), _approach(gap, 3 * protomer.radius(), 0.5) * outward)
    return [placed.moved(op, np.zeros(3)) for op in operators]


def _approach(gap: Callable[[float], float], distance: float, safe: float) -> float:
    """The distance at which the gap between two bodies that approach closes, in steps they cannot jump over."""
    while distance > 0.0:
        step = max(safe * (gap(distance) - _CLOSEST), 0.3)
        if gap(distance - step) < _CLOSEST:
            return distance
        distance -= step
    return 0.0


def _domains(count: int) -> list[Atoms]:
    """The first `count` domains of the assembly, each about its own centre."""
    plans: list[list[_Element]] = [
        _sandwich(7, 7, 13),
        _bundle(6, 27),
        _barrel(8, 10),
        _sandwich(5, 6, 11),
        _bundle(4, 36),
        _sandwich(6, 6, 14),
        _barrel(10, 9),
        _bundle(7, 19),
        _sandwich(8, 7, 12),
        _bundle(5, 30),
        _sandwich(7, 6, 12),
    ]
    rng = np.random.default_rng(_SEED)
    turns = Rotation.random(len(plans), random_state=_SEED).as_matrix()
    chains = [_chain(plan, rng).centred() for plan in plans[:count]]
    return [chain.moved(turn, np.zeros(3)) for chain, turn in zip(chains, turns, strict=False)]


def _packed(domains: list[Atoms]) -> Atoms:
    """Domains brought together one by one until they touch, each from the closest of a few directions."""
    rng = np.random.default_rng(_SEED)
    whole = domains[0]
    for domain in domains[1:]:
        directions = rng.normal(size=(_DIRECTIONS, 3)) * [1.3, 1.0, 0.8]
        landings = [_landing(whole, domain, direction / np.linalg.norm(direction)) for direction in directions]
        nearest = min(landings, key=lambda landing: float(np.linalg.norm(landing)))
        whole = joined([whole, domain.moved(np.eye(3), nearest)]).centred()
    return whole


def _landing(whole: Atoms, domain: Atoms, outward: Floats) -> Floats:
    """Where a domain that comes towards the origin along a direction touches `whole`."""
    tree = cKDTree(whole.positions[::_SAMPLE])

    def gap(distance: float) -> float:
        return _nearest(tree, domain.positions[::_SAMPLE] + distance * outward)

    return np.asarray(_approach(gap, whole.radius() + domain.radius(), 1.0) * outward)


def _nearest(tree: cKDTree, positions: Floats) -> float:
    return float(np.min(tree.query(positions)[0]))


# Folds: where the secondary structure lies


def _sandwich(n_strands: int, strand_length: int, helix_length: int) -> list[_Element]:
    """A twisted parallel sheet with helices on both faces (the Rossmann fold's arrangement)."""
    plan = []
    for i in range(n_strands):
        x = (i - (n_strands - 1) / 2) * _STRAND_SPACING
        twist = Rotation.from_rotvec(np.radians(-22.0) * (i - (n_strands - 1) / 2) * np.array([1.0, 0, 0]))
        plan.append(_Element("strand", strand_length, np.array([x, 0.0, 0.0]), twist.apply([0.0, 1.0, 0.0])))
        if i < n_strands - 1:
            side = _SHEET_TO_HELIX * (-1) ** i
            middle = np.array([x + _STRAND_SPACING / 2, 0.0, 0.0]) + twist.apply([0.0, 0.0, side])
            plan.append(_Element("helix", helix_length, middle, twist.apply([0.15, -1.0, 0.1])))
    return plan


def _bundle(n_helices: int, length: int) -> list[_Element]:
    """Helices side by side, up and down, on a hexagonal lattice, each leaning a little."""
    lattice = [(0, 0), (1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)][:n_helices]
    plan = []
    for i, (u, v) in enumerate(lattice):
        middle = _HELIX_SPACING * np.array([u + v / 2, v * np.sqrt(3) / 2, 0.0])
        lean = Rotation.from_rotvec(np.radians(14.0) * np.array([u + v / 2, v * np.sqrt(3) / 2, 0.0]))
        plan.append(_Element("helix", length - 3 * (i % 3), middle, (-1) ** i * lean.apply([0.0, 0.0, 1.0])))
    return plan


def _barrel(n_strands: int, length: int) -> list[_Element]:
    """A closed up-and-down sheet: strands around a cylinder, tilted by 36 degrees, and a helix that caps it."""
    tilt = np.radians(36.0)
    radius = _STRAND_SPACING / (2 * np.sin(np.pi / n_strands) * np.cos(tilt))
    plan = []
    for i in range(n_strands):
        angle = 2 * np.pi * i / n_strands
        out = np.array([np.cos(angle), np.sin(angle), 0.0])
        along = np.array([-np.sin(angle), np.cos(angle), 0.0])
        direction = np.cos(tilt) * np.array([0.0, 0.0, 1.0]) + np.sin(tilt) * along
        plan.append(_Element("strand", length, radius * out, (-1) ** i * direction))
    plan.append(_Element("helix", 16, np.array([0.0, 0.0, 2.2 * length + 6.0]), np.array([0.9, 0.3, 0.3])))
    return plan


# From folds to atoms


def _chain(plan: list[_Element], rng: np.random.Generator) -> Atoms:
    """The atoms of one chain through the elements of `plan`, joined by loops."""
    pieces = [_placed_backbone(element, 100.0 * i) for i, element in enumerate(plan)]
    chain: list[Floats] = []
    stiffness: list[Floats] = []
    for i, piece in enumerate(pieces):
        if i > 0:
            loop = _loop(pieces[i - 1], plan[i - 1].direction, piece, plan[i].direction)
            chain.append(loop)
            stiffness.append(np.full(len(loop), 55.0))
        chain.append(piece)
        stiffness.append(np.full(len(piece), 25.0))
    return _with_side_chains(np.concatenate(chain), np.concatenate(stiffness), rng)


def _placed_backbone(element: _Element, roll: float) -> Floats:
    """Backbone (n, 4, 3) of N, CA, C, O of a helix or strand, in place."""
    local = _ideal_backbone(element.kind, element.n_residues)
    direction = element.direction / np.linalg.norm(element.direction)
    turn, _ = Rotation.align_vectors([direction], [[0.0, 0.0, 1.0]])
    turn = turn * Rotation.from_euler("Z", roll, degrees=True)
    return np.asarray(turn.apply(local.reshape(-1, 3)).reshape(local.shape) + element.middle)


def _ideal_backbone(kind: str, n_residues: int) -> Floats:
    """Backbone (n, 4, 3) of constant dihedrals whose screw axis is z, its middle at the origin."""
    phi, psi = _PHI_PSI[kind]
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.458, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    while len(atoms) < 3 * n_residues:
        atoms.append(_next_atom(atoms[-3:], 1.329, 117.0, psi))
        atoms.append(_next_atom(atoms[-3:], 1.458, 121.7, 180.0))
        atoms.append(_next_atom(atoms[-3:], 1.525, 111.0, phi))
    trace = np.array(atoms).reshape(n_residues, 3, 3)
    oxygen = np.array([_next_atom([n, ca, c], 1.231, 120.5, psi + 180.0) for n, ca, c in trace])
    backbone = np.concatenate([trace, oxygen[:, None]], axis=1)

    step, _ = Rotation.align_vectors(trace[1] - trace[1].mean(axis=0), trace[0] - trace[0].mean(axis=0))
    travel = trace[1].mean(axis=0) - step.apply(trace[0].mean(axis=0))
    axis = step.as_rotvec() / np.linalg.norm(step.as_rotvec())
    axis = axis if axis @ travel > 0 else -axis
    across = travel - (axis @ travel) * axis
    on_axis = np.linalg.lstsq(np.eye(3) - step.as_matrix(), across, rcond=None)[0]
    upright, _ = Rotation.align_vectors([[0.0, 0.0, 1.0]], [axis])
    standing = upright.apply((backbone - on_axis).reshape(-1, 3)).reshape(backbone.shape)
    return np.asarray(standing - [0.0, 0.0, standing[..., 2].mean()])


def _next_atom(chain: list[Floats], length: float, angle: float, dihedral: float) -> Floats:
    """The atom d bonded to the last of a-b-c, with the bond angle b-c-d and the dihedral a-b-c-d in degrees."""
    a, b, c = chain
    theta, phi = np.radians([angle, dihedral])
    bond = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, bond)
    normal /= np.linalg.norm(normal)
    offset = -np.cos(theta) * bond + np.sin(theta) * (np.cos(phi) * np.cross(normal, bond) + np.sin(phi) * normal)
    return np.asarray(c + length * offset)


def _loop(before: Floats, leaving: Floats, after: Floats, arriving: Floats) -> Floats:
    """Backbone (n, 4, 3) of a loop along a Hermite curve between two elements."""
    start, end = before[-1, 2], after[0, 0]
    reach = 0.7 * np.linalg.norm(end - start) + 6.0
    out, home = reach * leaving / np.linalg.norm(leaving), reach * arriving / np.linalg.norm(arriving)
    curve = _hermite(start, end, out, home, np.linspace(0.0, 1.0, 200))
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    n_residues = max(1, round(float(travelled[-1]) / 3.6))
    places = (np.arange(3 * n_residues) + 0.75) / (3 * n_residues) * travelled[-1]
    trace = np.stack([np.interp(places, travelled, axis) for axis in curve.T], axis=1).reshape(-1, 3, 3)
    along = trace[:, 2] - trace[:, 0]
    aside = np.cross(along, curve[100] - (start + end) / 2 + [0.1, 0.2, 0.3])
    aside *= (-1.0) ** np.arange(n_residues)[:, None] / np.linalg.norm(aside, axis=1, keepdims=True)
    trace[:, 1] += 0.6 * aside
    return np.concatenate([trace, (trace[:, 2] - 1.2 * aside)[:, None]], axis=1)


def _hermite(start: Floats, end: Floats, out: Floats, home: Floats, t: Floats) -> Floats:
    t = t[:, None]
    return np.asarray(
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * out
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * home
    )


def _with_side_chains(backbone: Floats, stiffness: Floats, rng: np.random.Generator) -> Atoms:
    """All atoms of a backbone (n, 4, 3): side chains of 0 to 7 atoms, floppier the farther out."""
    positions = list(backbone.reshape(-1, 3))
    elements = ["N", "C", "C", "O"] * len(backbone)
    b_factors = list(np.repeat(stiffness, 4))
    lengths = rng.choice([0, 1, 3, 4, 5, 7], size=len(backbone), p=[0.08, 0.14, 0.24, 0.26, 0.16, 0.12])
    rotamers = rng.choice([-60.0, 60.0, 180.0], size=(len(backbone), 4), p=[0.5, 0.15, 0.35])
    for (n, ca, c, _), length, chi, b_factor in zip(backbone, lengths, rotamers, stiffness, strict=True):
        for i, atom in enumerate(_side_chain(n, ca, c, int(length), chi)):
            positions.append(atom)
            elements.append("O" if i >= 3 and i == length - 1 else "C")
            b_factors.append(b_factor + 8.0 * (i + 1))
    return Atoms(np.array(positions), np.array(elements), np.array(b_factors), np.ones(len(positions)))


def _side_chain(n: Floats, ca: Floats, c: Floats, length: int, chi: Floats) -> list[Floats]:
    """A side chain of the L form: a zigzag from CB, its outer atoms in pairs."""
    if length == 0:
        return []
    to_n, to_c = n - ca, c - ca
    normal = np.cross(to_n, to_c)
    bisector = -(to_n / np.linalg.norm(to_n) + to_c / np.linalg.norm(to_c))
    outward = 0.82 * normal / np.linalg.norm(normal) + 0.58 * bisector / np.linalg.norm(bisector)
    stem = [n, ca, ca + 1.53 * outward / np.linalg.norm(outward)]
    atoms = [stem[-1]]
    for angle in chi:
        tip = _next_atom(stem[-3:], 1.53, 112.0, angle)
        atoms += [tip, _next_atom(stem[-3:], 1.53, 112.0, angle + 120.0)]
        stem.append(tip)
    return atoms[:length]

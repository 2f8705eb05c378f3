"""The density of atoms: against gemmi and against the analytic transform; reading models."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest

from spa.atoms import Atoms, density, joined
from spa.errors import InputError
from spa.fourier import forward
from spa.io.model import read_model, scattering_factors

PDB = """\
ATOM      1  N   ALA A   1       0.000   0.000   0.000  1.00 20.00           N
ATOM      2  CA  ALA A   1       1.458   0.000   0.000  1.00 25.00           C
ATOM      3  O   ALA A   1       4.000   6.000  -3.000  0.50 30.00           O
HETATM    4  O   HOH A   2       9.000   9.000   9.000  1.00 30.00           O
END
"""
ASSEMBLY = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       10.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000
"""


def _atoms() -> Atoms:
    rng = np.random.default_rng(3)
    positions = rng.normal(0, 6, (30, 3))
    elements = rng.choice(["C", "N", "O", "S"], 30)
    return Atoms(positions, elements, rng.uniform(20, 80, 30), rng.uniform(0.5, 1, 30))


def test_density_is_gemmis() -> None:
    atoms, box, pixel = _atoms(), 64, 0.9
    ours = density(atoms, scattering_factors(atoms.elements), box, pixel)
    structure = gemmi.Structure()
    structure.cell = gemmi.UnitCell(*(box * pixel,) * 3, 90, 90, 90)
    structure.spacegroup_hm = "P 1"
    chain, residue = gemmi.Chain("A"), gemmi.Residue()
    residue.name = "UNK"
    for position, element, b, occupancy in zip(
        atoms.positions + box * pixel / 2, atoms.elements, atoms.b_factors, atoms.occupancies, strict=True
    ):
        atom = gemmi.Atom()
        atom.pos, atom.element = gemmi.Position(*position), gemmi.Element(str(element))
        atom.b_iso, atom.occ = b, occupancy
        residue.add_atom(atom)
    chain.add_residue(residue)
    structure.add_model(gemmi.Model(1))
    structure[0].add_chain(chain)
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min, calculator.rate = 2 * pixel, 1.0
    calculator.cutoff = 1e-7
    calculator.grid.set_unit_cell(structure.cell)
    calculator.grid.set_size(box, box, box)
    calculator.put_model_density_on_grid(structure[0])
    theirs = np.array(calculator.grid, copy=True).transpose(2, 1, 0)
    # theirs samples the density, ours is band-limited: compare below half of Nyquist, where no alias reaches
    radius = np.sqrt(sum(np.fft.fftfreq(box)[index] ** 2 for index in np.ix_(*(range(box),) * 3)))
    low = radius[..., : box // 2 + 1] < 0.25
    a, b = forward(ours, 3)[low], forward(theirs.astype(np.float32), 3)[low]
    assert np.abs(a - b).max() < 2e-3 * np.abs(b).max()


def test_density_is_the_analytic_transform_to_nyquist() -> None:
    atoms, box, pixel = _atoms(), 32, 1.5
    factors = scattering_factors(atoms.elements)
    ft = forward(density(atoms, factors, box, pixel), 3) * pixel**3
    k = np.array([[1, 2, 3], [0, 0, 0], [15, 0, 0], [10, -11, 4], [3, 15, -15]])
    s2 = (k**2).sum(axis=1) / (box * pixel) ** 2
    expected = np.zeros(len(k), dtype=np.complex128)
    for position, element, b, occupancy in zip(
        atoms.positions, atoms.elements, atoms.b_factors, atoms.occupancies, strict=True
    ):
        amplitudes, widths = factors[element]
        factor = sum(a * np.exp(-(w + b) / 4 * s2) for a, w in zip(amplitudes, widths, strict=True))
        expected += occupancy * factor * np.exp(-2j * np.pi * (k @ position) / (box * pixel))
    assert np.abs(ft[k[:, 2], k[:, 1], k[:, 0]] - expected).max() < 3e-5 * abs(expected[1])


def test_an_atom_lands_at_its_coordinates_x_fastest() -> None:
    atom = Atoms(np.array([[6.0, -4.0, 2.0]]), np.array(["C"]), np.array([60.0]), np.ones(1))
    volume = density(atom, scattering_factors(["C"]), 16, 2.0)
    assert np.unravel_index(volume.argmax(), volume.shape) == (8 + 1, 8 - 2, 8 + 3)


def test_models_that_do_not_fit_or_are_unknown_are_refused() -> None:
    atoms = _atoms()
    with pytest.raises(InputError, match="does not fit the box of 16 px = 16 Å"):
        density(atoms, scattering_factors(atoms.elements), 16, 1.0)
    with pytest.raises(InputError, match="element C: no electron scattering factor"):
        density(atoms, {}, 64, 1.0)


def test_model_is_read_without_water_plain_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(PDB)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(PDB.encode()))
    for name in ("a.pdb", "a.pdb.gz"):
        atoms = read_model(tmp_path / name)
        assert atoms.elements.tolist() == ["N", "C", "O"]
        assert atoms.positions[2] == pytest.approx([4, 6, -3])
        assert atoms.b_factors == pytest.approx([20, 25, 30])
        assert atoms.occupancies == pytest.approx([1, 1, 0.5])


def test_biological_assembly_is_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(ASSEMBLY + PDB)
    atoms = read_model(tmp_path / "a.pdb")
    assert len(atoms) == 6
    assert atoms.positions[3:] == pytest.approx(atoms.positions[:3] * [-1, -1, 1] + [10, 0, 0])


def test_deposited_chaperonin_needs_its_operators_for_d7(shared_data: Path) -> None:
    atoms = read_model(shared_data / "models" / "1oel.pdb.gz")
    one_ring = gemmi.read_structure(str(shared_data / "models" / "1oel.pdb.gz"))
    one_ring.remove_waters()
    assert len(atoms) == 2 * sum(1 for _ in one_ring[0].all())


@pytest.mark.parametrize("text", ["", "not a model\n", "REMARK nothing here\nEND\n"])
def test_files_that_are_no_model_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pdb").write_text(text)
    with pytest.raises(InputError, match=r"a\.pdb"):
        read_model(tmp_path / "a.pdb")
    with pytest.raises(InputError, match="expected a model file"):
        read_model(tmp_path / "missing.pdb")


def test_joined_models_keep_every_atom() -> None:
    a = _atoms()
    step = np.array([1.0, 0, 0])
    both = joined([a, a.moved(np.eye(3), step)])
    assert len(both) == 60
    assert both.positions[30:] == pytest.approx(a.positions + step)

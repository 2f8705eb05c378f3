"""Atomic models from PDB and mmCIF files, plain or gzipped, with their biological assembly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from spa.atoms import Atoms
from spa.errors import InputError
from spa.io.files import existing_file


def read_model(path: str | os.PathLike[str]) -> Atoms:
    """The atoms of the first model in a file, put together by its first biological assembly, waters left out.

    Parameters
    ----------
    path : PDB or mmCIF, .gz or not. Without assembly operators the deposited atoms are taken.

    Returns
    -------
    Atoms in the file's frame; `Atoms.centred` moves them to the origin.

    Raises
    ------
    InputError
        If the file is missing, cannot be read as a model, or holds no atom.
    """
    path = existing_file(path, "model file (PDB or mmCIF)")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: expected a PDB or mmCIF file: {str(error).splitlines()[0]}") from None
    structure.setup_entities()
    structure.remove_waters()
    structure.remove_empty_chains()
    if len(structure) == 0:
        raise InputError(f"{path}: expected an atomic model, found no atom")
    model = structure[0]
    if structure.assemblies:
        model = gemmi.make_assembly(structure.assemblies[0], model, gemmi.HowToNameCopiedChain.Short)
    atoms = [site.atom for site in model.all()]
    if not atoms:
        raise InputError(f"{path}: expected an atomic model, found no atom")
    return Atoms(
        positions=np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64),
        elements=np.array([atom.element.name for atom in atoms]),
        b_factors=np.array([atom.b_iso for atom in atoms], dtype=np.float64),
        occupancies=np.array([atom.occ for atom in atoms], dtype=np.float64),
    )


def scattering_factors(elements: Iterable[Any]) -> dict[str, NDArray[np.float64]]:
    """Electron scattering factors of elements: symbol -> float64 (2, 5), amplitudes a (Å) and widths b (Å²).

    Elements that have none in the table are absent.

    Notes
    -----
    International Tables for Crystallography C (2011), table 4.3.2.2, as gemmi holds it.
    """
    found = {}
    for symbol in {str(element) for element in elements}:
        coefficients = gemmi.Element(symbol).c4322
        if coefficients is not None:
            found[symbol] = np.array([coefficients.a, coefficients.b], dtype=np.float64)
    return found

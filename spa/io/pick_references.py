"""References for picking, a map or a stack of images: read once, turned once for each size of pixel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa import picking_templates as templates
from spa.errors import InputError
from spa.io import mrc
from spa.kernels.backend import to_device


def read_reference(path: str, angpix: float = -1.0) -> tuple[NDArray[np.float32], float, bool]:
    """A map (size,) * 3 or square images (n, size, size), their pixel size in Angstrom, and whether it is a map.

    A positive `angpix` overrules the header. What is not a cube, or called .mrcs, are images.

    Raises
    ------
    InputError
        As `mrc.info`; an odd or uneven box, no pixel size, a value that is not finite.
    """
    found = mrc.info(path)
    is_map = Path(path).suffix != ".mrcs" and len(set(found.shape)) == 1
    if is_map:
        volume, pixel_size = mrc.read_volume(path, angpix)
        return volume, pixel_size, True
    images, pixel_size = mrc.read(path)
    pixel_size = angpix if angpix > 0 else pixel_size
    if images.shape[1] != images.shape[2]:
        raise InputError(f"{path}: expected square references, found {images.shape[2]} x {images.shape[1]} pixels")
    mrc.check_box(images.shape[1], path)
    if pixel_size <= 0:
        raise InputError(f"{path}: its header has no pixel size; give --angpix_ref")
    if not np.isfinite(images).all():
        raise InputError(f"{path}: expected finite pixels, found {int((~np.isfinite(images)).sum())} that are not")
    return images, pixel_size, False


@lru_cache(maxsize=4)
def reference_diameter(path: str, state: tuple[int, int], angpix: float) -> float:
    """Diameter in Angstrom of what a reference shows; `state` is the file's, as of `file_state`.

    Raises
    ------
    InputError
        As `read_reference`; no density stands out.
    """
    reference, pixel_size, is_map = read_reference(path, angpix)
    if not is_map:
        return templates.image_diameter(reference, pixel_size)
    try:
        return templates.map_diameter(reference, pixel_size)
    except InputError as error:
        raise InputError(f"{path}: {error}; give --particle_diameter") from None


@lru_cache(maxsize=4)
def turned(
    path: str,
    state: tuple[int, int],
    angpix: float,
    sym: str,
    order: int,
    ang: float,
    pixel_size: float,
    box: int,
    device: int | None,
) -> templates.Templates:
    """The templates of a reference with `pixel_size` (Angstrom) in a `box`, in all orientations, on a device.

    state : of the file, as of `file_state`. angpix, sym, order : of a map, as in `read_reference` and `of_map`. ang :
    in-plane step in degrees.
    """
    reference, own, is_map = read_reference(path, angpix)
    moved = to_device(reference, device)
    if is_map:
        return templates.of_map(moved, own, pixel_size, box, order, sym, ang)
    return templates.of_images(moved, own, pixel_size, box, ang)

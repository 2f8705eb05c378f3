"""What scoring costs, to choose between tables of directions and slices: measured rates and counts of operations."""

from __future__ import annotations

from spa.em.sampling import Candidates, Level
from spa.em.steerable import Rings
from spa.grids import half_plane

SLICE_NS, SLICE_NS_SCATTERED = 7.0, 16.0
"""Nanoseconds per point of a slice, the transform in cache or not (`python -m benchmarks.kernels`)."""
CACHED_RADIUS = 80
"""Radius (padded voxels) of the largest half transform that stays in cache: about 8 MB."""
SUM_NS = 0.08
"""Nanoseconds per float of a sum over a row (25 GFLOP/s, four rows at a time)."""
PRODUCT_NS = 0.03
"""Nanoseconds per multiplication of a matrix product (70 GFLOP/s)."""
SHIFT_NS = 2.5
"""Nanoseconds per pixel of a shifted image."""
KEPT = 0.4
"""Share of the Bessel functions that a basis keeps, about."""


def steerable_pays(
    rings: Rings, level: Level, n_directions: int, candidates: Candidates, share: float, transform_radius: int
) -> bool:
    """Whether a table of a level's directions costs less than slices for each orientation asked for.

    Parameters
    ----------
    n_directions : directions that the table would hold.
    candidates : what a first batch asks for.
    share : how many such batches there are.
    transform_radius : radius of the references' transforms in padded voxels.

    Notes
    -----
    A table costs a fixed sum per direction and each shifted image a product with the basis; slices cost a sum per
    orientation and image.
    """
    slice_ns = SLICE_NS if transform_radius <= CACHED_RADIUS else SLICE_NS_SCATTERED
    n_images = max(1, len(candidates.image_offsets) - 1)
    n_groups, n_candidates = len(candidates.orientation), len(candidates.shift)
    # an image's candidates share its shifted copies: between as many as one orientation asks for and all there are
    per_group = n_candidates / max(1, n_groups)
    n_rows = n_images * min(len(level.offsets()), 4 * per_group)
    n_pixels = float(len(half_plane(rings.box, level.kmax)))
    n_floats = 2 * KEPT * sum(b.shape[1] for b in rings.bessel)
    n_moments = 2 * int(rings.norm_starts[-1])
    direct = n_groups * n_pixels * (slice_ns + 2 * SUM_NS) + n_rows * n_pixels * SHIFT_NS
    direct += n_candidates * 2 * n_pixels * SUM_NS
    points = rings.n_rings * rings.n_angles
    fixed = n_directions * points * (slice_ns + 3 * len(rings.bessel) * PRODUCT_NS)
    steered = n_rows * n_pixels * (SHIFT_NS + n_floats * PRODUCT_NS) + n_images * n_pixels * n_moments * PRODUCT_NS
    steered += n_groups * (3 * n_floats + 0.5 * n_moments) * SUM_NS + n_candidates * n_floats * SUM_NS
    return bool(fixed + share * steered < share * direct)

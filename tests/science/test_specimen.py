"""Where things lie: no overlap, clear of carbon and dirt, all from the random numbers given."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from spa.errors import InputError
from spa.specimen import Surroundings, draw_surroundings, place

SHAPE = (400, 600)


def _rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_particles_are_a_diameter_apart_and_within_the_borders() -> None:
    found = place(100, SHAPE, 30.0, _rng())
    assert found.shape == (100, 2)
    assert pdist(found).min() >= 30
    assert found.min() >= 15
    assert (found.max(axis=0) <= [600 - 1 - 15, 400 - 1 - 15]).all()
    assert found[:, 0].max() > 500
    assert np.array_equal(found, place(100, SHAPE, 30.0, _rng()))
    assert len(place(0, SHAPE, 30.0, _rng())) == 0


def test_places_are_spread_evenly() -> None:
    found = np.concatenate([place(20, SHAPE, 10.0, _rng(seed)) for seed in range(100)])
    for values, extent in zip(found.T, (600, 400), strict=True):
        counts, _ = np.histogram(values, 10, (5, extent - 6))
        assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize(("n", "diameter"), [(500, 60.0), (1, 400.0)])
def test_too_many_or_too_large_is_refused(n: int, diameter: float) -> None:
    with pytest.raises(InputError, match=r"do(es)? not fit a micrograph of 600 x 400 px"):
        place(n, SHAPE, diameter, _rng())


@pytest.mark.parametrize("seed", range(5))
def test_what_is_clear_of_carbon_and_dirt_is_not_covered(seed: int) -> None:
    around = draw_surroundings(SHAPE, 5.0, 1.0, 4.0, _rng(seed))
    assert around.hole is not None
    points = place(100, SHAPE, 10.0, _rng(seed))
    found = points[around.clearance(points) >= 15]
    assert 0 < len(found) < 100
    assert np.isinf(Surroundings(None, ()).clearance(points)).all()
    y, x = np.indices(SHAPE)
    for lump in [one.drawn(SHAPE, (0, 0)) for one in around.all]:
        covered = np.zeros(SHAPE, np.float32)
        lump.part(covered)[:] = lump.thickness
        assert covered.min() >= 0
        assert covered.max() <= 1
        for px, py in found:
            assert covered[np.hypot(x - px, y - py) < 14].max() == 0


def test_carbon_covers_up_to_half_and_appears_as_often_as_asked() -> None:
    drawn = [draw_surroundings(SHAPE, 5.0, 0.4, 0.0, _rng(seed)) for seed in range(300)]
    holes = [around.hole for around in drawn if around.hole]
    assert len(holes) / 300 == pytest.approx(0.4, abs=0.1)
    covered = [float((hole.drawn(SHAPE, (0, 0)).thickness > 0.5).mean()) for hole in holes]
    assert min(covered) > 0.05
    assert max(covered) < 0.6


def test_dirt_has_the_number_asked_for_and_moves_with_the_origin() -> None:
    drawn = [draw_surroundings(SHAPE, 5.0, 0.0, 3.0, _rng(seed)) for seed in range(200)]
    assert np.mean([len(around.blobs) for around in drawn]) == pytest.approx(3, abs=5 * np.sqrt(3 / 200))
    blob = next(around.blobs[0] for around in drawn if around.blobs)
    here, there = np.zeros(SHAPE, np.float32), np.zeros((440, 640), np.float32)
    for image, origin in ((here, (0, 0)), (there, (25, 15))):
        lump = blob.drawn(image.shape, origin)
        lump.part(image)[:] = lump.thickness
    assert here.max() > 0.5
    assert there[25:425, 15:615] == pytest.approx(here, abs=1e-5)

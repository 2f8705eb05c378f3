"""Picking: images made ready, masks, peaks, scores, templates and decoys, against planted truth."""

from __future__ import annotations

import numpy as np
import pytest

from spa import picking, picking_contamination, picking_image, picking_log, picking_scores, picking_templates
from spa.ctf import coefficients
from spa.kernels.backend import to_host
from spa.mask import soft_sphere
from spa.picking_evaluation import match
from spa.picking_peaks import apart, automatic_threshold, find_peaks
from spa.picking_scores import Bank, Field, noise_field, unit

PIXEL, DIAMETER = 6.0, 120.0


def noise(shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def blob(shape: tuple[int, int], x: float, y: float, sigma: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)).astype(np.float32)


def ring(shape: tuple[int, int], x: float, y: float) -> np.ndarray:
    """The projection of a hollow shell, as wide as DIAMETER."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius = np.hypot(rows - y, columns - x) * PIXEL
    outer, inner = DIAMETER / 2, 0.65 * DIAMETER / 2
    chord = np.sqrt(np.maximum(outer**2 - radius**2, 0)) - np.sqrt(np.maximum(inner**2 - radius**2, 0))
    return (chord / outer).astype(np.float32)


def places(shape: tuple[int, int], n: int, seed: int = 3) -> np.ndarray:
    """Centres that do not overlap, (n, 2) x and y."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(14, np.array(shape[::-1]) - 14, (4000, 2))
    return drawn[apart(drawn, 1.05 * DIAMETER / PIXEL)][:n]


def prepared(plain: np.ndarray, put=np.asarray, usable: np.ndarray | None = None) -> picking_image.Prepared:
    usable = np.ones(plain.shape, dtype=bool) if usable is None else usable
    return picking_image.prepare(put(plain), put(usable), PIXEL, DIAMETER)


def limits(**more) -> picking.Limits:
    return picking.Limits(min_distance=0.65 * DIAMETER / PIXEL, **more)


@pytest.mark.parametrize("step", [1.0, 1.25, 2.5, 4.0])
def test_shrinking_keeps_places_and_throws_out_hot_pixels(step):
    image = blob((301, 260), 120.3, 200.6, 9.0) * 30 + noise((301, 260))
    image[10, 20] = 1e6
    small = picking_image.shrink(image, step)
    assert small.shape == (int(np.ceil(301 / step)), int(np.ceil(260 / step)))
    assert np.abs(small[: int(40 / step)]).max() < 20
    rows, columns = np.indices(small.shape)
    weight = np.where(np.hypot(rows * step - 200.6, columns * step - 120.3) < 25, small, 0)
    assert (columns * weight).sum() / weight.sum() * step == pytest.approx(120.3, abs=0.15)
    assert (rows * weight).sum() / weight.sum() * step == pytest.approx(200.6, abs=0.15)


def test_the_step_is_the_largest_that_is_quick_to_transform():
    assert picking_image.working_step(1.5, 6.0) == 4.0
    assert picking_image.working_step(1.5, 1.0) == 1.0
    for wanted in (2.0, 3.7, 9.9):
        step = picking_image.working_step(0.83, wanted)
        assert wanted / 1.15 < 0.83 * step <= wanted * (1 + 1e-6)


def test_a_flat_image_is_refused():
    with pytest.raises(ValueError, match="no contrast"):
        picking_image.shrink(np.full((64, 64), 5.0, np.float32), 2.0)


def test_the_median_is_the_middle_value():
    values = np.random.default_rng(7).permutation(101).astype(np.float32)
    assert picking_image.median(values) == 50
    assert picking_image.median(values[:, None]) == 50


@pytest.mark.parametrize("sigma", [0.7, 5.0, 40.0])
def test_the_coverage_of_a_whole_image_is_that_of_the_mask_and_means_of_a_constant_are_it(sigma):
    whole, part = np.ones((70, 95), dtype=bool), np.ones((70, 95), dtype=bool)
    part[30:40, 20:60] = False
    assert np.allclose(picking_image.coverage(whole, sigma), picking_image.blurred(whole, sigma), atol=1e-5)
    for usable in (whole, part):
        mean = picking_image.local_mean(np.where(usable, np.float32(3), np.float32(9)), usable, sigma)
        assert np.allclose(mean[usable], 3, rtol=2e-3)


def test_the_prepared_image_is_even_and_white_whatever_lies_below():
    shape = (240, 260)
    slope = np.linspace(0, 12, shape[1], dtype=np.float32)
    coloured = picking_image.blurred(noise(shape), 0.5) * 8 * (1 + np.linspace(0, 1, shape[0])[:, None]) + slope
    made = prepared(coloured.astype(np.float32))
    assert made.values.std() == pytest.approx(1, abs=0.1)
    blocks = made.values[:240].reshape(4, 60, 4, 65)
    assert np.abs(blocks.mean(axis=(1, 3))).max() < 0.15
    power = np.abs(np.fft.rfft2(made.values)) ** 2
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    bands = [power[(radius > low) & (radius < low + 0.1)].mean() for low in (0.05, 0.15, 0.25, 0.35)]
    assert max(bands) / min(bands) < 1.3


def test_peaks_are_found_between_pixels_and_apart():
    shape = (80, 90)
    image = blob(shape, 30.3, 40.8, 4) + 0.5 * blob(shape, 60, 20, 4) + 0.4 * blob(shape, 66, 20, 4)
    found = find_peaks(image, 10, 0.1)
    assert np.allclose(found.centres[0], (30.3, 40.8), atol=0.05)
    assert len(found) == 2
    assert found.score[0] > found.score[1]


def test_a_slope_into_a_masked_part_is_no_peak():
    image = 0.5 * blob((80, 90), 60, 40, 4) + blob((80, 90), 20, 40, 6)
    image[:, :25] = -np.inf
    assert np.allclose(find_peaks(image, 5, 0.1, usable=image > -np.inf).centres, [(60, 40)], atol=0.05)


@pytest.mark.parametrize("distance", [3.0, 9.0])
def test_no_two_kept_centres_are_too_near_and_none_is_dropped_in_vain(distance):
    centres = np.random.default_rng(5).uniform(0, 60, (200, 2))
    kept = apart(centres, distance)
    between = np.linalg.norm(centres[:, None] - centres[kept], axis=2)
    assert np.sort(between[kept], axis=1)[:, 1].min() >= distance
    dropped = np.setdiff1d(np.arange(200), kept)
    nearest_better = [between[i, kept < i].min() for i in dropped]
    assert max(nearest_better) < distance


def test_the_threshold_lies_between_two_kinds_of_peaks_and_above_noise():
    rng = np.random.default_rng(2)
    background, particles = rng.gumbel(3.0, 0.3, 400), rng.normal(8.0, 1.0, 150)
    threshold = automatic_threshold(np.concatenate([background, particles]), rng.gumbel(3.0, 0.3, 400), 1.0)
    assert (particles > threshold).mean() > 0.97
    assert (background > threshold).mean() < 0.01
    alone = automatic_threshold(rng.gumbel(3.0, 0.3, 400), rng.gumbel(3.0, 0.3, 400), 1.0)
    assert alone > np.quantile(background, 0.98)
    assert np.isfinite(automatic_threshold(np.zeros(0), np.zeros(0), 1.0))


def test_scores_are_normalised_correlations():
    values = noise((60, 70)) * 3 + 2
    field = Field(values, np.ones(values.shape, dtype=bool), 6.0)
    template = unit(np.random.default_rng(4).normal(size=(1, int(field.inside.sum()))))
    score, label = field.best(Bank.of(template), np.zeros(1, np.int32))
    half = field.box // 2
    under = values[30 - half : 30 + half, 25 - half : 25 + half][field.inside]
    wanted = float(template[0] @ (under - under.mean())) / under.std()
    assert score[30, 25] == pytest.approx(wanted, rel=2e-3)
    assert label.max() == 0
    assert score[field.valid].std() == pytest.approx(1, abs=0.1)
    assert np.isneginf(score[0, 0])


def test_few_images_stand_for_many_templates():
    rng = np.random.default_rng(6)
    templates = unit(rng.normal(size=(300, 7)) @ rng.normal(size=(7, 200)))
    bank = Bank.of(templates, 0.999999)
    assert len(bank.images) <= 8
    assert np.allclose(bank.weights @ bank.images, templates, atol=1e-3)
    field = noise_field(7.5, (64, 64), 1, templates)
    chosen = unit(rng.normal(size=(40, int(field.inside.sum()))))
    one_by_one = max(field.best(Bank.of(row[None]), np.zeros(1, np.int32))[0][30, 30] for row in chosen)
    together, label = field.best(Bank.of(chosen, 1 - 1e-9), np.arange(40, dtype=np.int32))
    assert together[30, 30] == pytest.approx(one_by_one, rel=1e-3)
    assert 0 <= label.min() <= label.max() < 40


def test_grains_and_carbon_are_masked_and_slopes_are_not():
    shape, size = (300, 320), DIAMETER / PIXEL
    ice = noise(shape)
    for x, y in places(shape, 60):
        ice -= 2.0 * ring(shape, x, y)
    assert picking_contamination.usable_area(ice, PIXEL, DIAMETER).all()
    slope = ice + np.linspace(-4, 4, shape[1], dtype=np.float32)
    assert picking_contamination.usable_area(slope, PIXEL, DIAMETER).all()
    for sign in (1, -1):
        dirty = ice + sign * 15 * blob(shape, 100, 200, 0.4 * size)
        usable = picking_contamination.usable_area(dirty, PIXEL, DIAMETER)
        assert not usable[190:210, 90:110].any()
        assert usable.mean() > 0.95
    film = np.arange(shape[1]) > 200
    covered = np.where(film, 1.6 * noise(shape, 9) - 6, ice).astype(np.float32)
    usable = picking_contamination.usable_area(covered, PIXEL, DIAMETER)
    assert not usable[:, 205:].any()
    assert usable[:, :180].mean() > 0.95


@pytest.mark.parametrize("size", [40.0, 88.0, 72.0])
def test_constant_regions_are_found_to_the_pixel(size):
    image = noise((200, 180))
    assert not picking_contamination.constant_area(image, size).any()
    assert not picking_contamination.constant_area(np.rint(3 * image), size).any()
    wanted = np.zeros(image.shape, bool)
    wanted[:, :50] = wanted[120:150, 40:90] = True
    image[wanted] = 7.0
    assert (picking_contamination.constant_area(image, size) == wanted).all()
    full = picking_contamination.filled(image, wanted, 1)
    assert (full[~wanted] == image[~wanted]).all()
    assert full[wanted].std() == pytest.approx(1, abs=0.1)
    usable = picking_contamination.usable_area(full, PIXEL, DIAMETER, wanted)
    assert not usable[wanted].any()
    assert usable[:100, 65:].all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("first", "last"), [(12, 0), (0, 1), (30, 25)])
def test_a_border_that_repeats_a_row_is_found(axis, first, last):
    image = noise((160, 180)) if axis == 0 else noise((180, 160))
    rows = image if axis == 0 else image.T
    n = len(rows)
    rows[:first] = rows[first]
    rows[n - last :] = rows[n - last - 1]
    found = picking_contamination.constant_area(image, 40.0)
    assert (found.any(axis=1 - axis) == found.all(axis=1 - axis)).all()
    wanted = (np.arange(n) < first) | (np.arange(n) >= n - last)
    assert (found.any(axis=1 - axis) == wanted).all()


def test_few_counts_are_no_constant_region():
    counts = np.random.default_rng(2).poisson(0.15, (600, 500)).astype(np.float32)
    assert not picking_contamination.constant_area(counts, 40.0).any()
    counts[200:400, 100:300] = 0
    found = picking_contamination.constant_area(counts, 40.0)
    assert found[210:390, 110:290].all()
    assert found.mean() < 0.15


@pytest.mark.parametrize("hole", [False, True])
def test_the_area_of_whole_particles_keeps_away_from_edges_and_holes(hole):
    constant = np.zeros((60, 80), bool)
    constant[20:30, 40:50] = hole
    rows, columns = np.nonzero(np.pad(constant, 1, constant_values=True))
    y, x = np.indices(constant.shape)
    distance = np.sqrt(((y[..., None] + 1 - rows) ** 2 + (x[..., None] + 1 - columns) ** 2).min(axis=-1))
    for reach in (0.0, 7.3, 12.0):
        assert (picking_contamination.whole_area(constant, reach) == (distance >= reach + 0.5)).all()
    assert picking_contamination.whole_area(constant, -3.0).all()


def test_a_smooth_dark_bar_is_masked():
    shape = (300, 320)
    bar = np.arange(shape[1]) > 220
    image = np.where(bar, 0.2 * noise(shape, 9) - 9, noise(shape)).astype(np.float32)
    usable = picking_contamination.usable_area(image, PIXEL, DIAMETER)
    assert not usable[:, 225:].any()
    assert usable[:, :200].mean() > 0.95


def test_a_masked_level_does_not_count_as_contrast_and_the_limit_can_be_turned_off():
    shape = (240, 250)
    truth = places(shape, 25)
    image = noise(shape) - 3.0 * sum(ring(shape, x, y) for x, y in truth)
    x, y = truth[0]
    image += 6 * noise(shape, 5) * (np.hypot(*(np.indices(shape) - np.array([y, x])[:, None, None])) < 9)
    image -= 5 * 3.0 * ring(shape, x, y)
    kept = picking.by_shape(prepared(image), (110.0, 130.0), limits(threshold=4.0), 1)
    every = picking.by_shape(prepared(image), (110.0, 130.0), limits(threshold=4.0, usual=False), 1)
    assert every.odd == 0 < kept.odd
    assert len(every.peaks) == len(kept.peaks) + kept.odd
    usable = np.broadcast_to(np.arange(shape[1]) > 60, shape)
    level = np.where(np.arange(shape[1]) > 50, noise(shape) - 3.0 * sum(ring(shape, *t) for t in truth), 40.0)
    ready = prepared(level.astype(np.float32), usable=usable)
    found = picking.by_shape(ready, (110.0, 130.0), limits(threshold=4.0), 1)
    assert found.odd == 0


def test_scores_are_the_same_however_many_are_made_at_once(monkeypatch):
    field = noise_field(7.5, (64, 64), 1, noise((4, 4)))
    bank = Bank.of(unit(np.random.default_rng(3).normal(size=(40, int(field.inside.sum())))))
    which = np.arange(40, dtype=np.int32)
    whole = field.best(bank, which)
    monkeypatch.setattr(picking_scores, "SCORES_AT_ONCE", 40 * 100)
    parts = field.best(bank, which)
    assert np.allclose(whole[0][field.valid], parts[0][field.valid], rtol=1e-5)
    assert (whole[1] == parts[1]).mean() > 0.999


def test_hollow_particles_are_picked_by_their_shape_at_their_centres():
    shape = (300, 320)
    truth = places(shape, 70)
    image = noise(shape) - 2.0 * sum(ring(shape, x, y) for x, y in truth)
    found = picking.by_shape(prepared(image), (110.0, 130.0), limits(), 1)
    matched, offset = match(found.peaks.centres, found.peaks.score, truth, 5.0)
    assert (matched >= 0).sum() >= 0.97 * len(truth)
    assert (matched < 0).sum() <= 2
    assert np.median(offset[matched >= 0]) < 0.5


def test_blobs_alone_are_picked_without_refinement_and_an_upper_threshold_holds():
    shape = (240, 250)
    truth = places(shape, 12)
    image = noise(shape) - 3.0 * sum(blob(shape, x, y, 0.3 * DIAMETER / PIXEL) for x, y in truth)
    found = picking.by_shape(prepared(image), (100.0, 140.0), limits(threshold=6.0), 1, refine=False)
    matched, _ = match(found.peaks.centres, found.peaks.score, truth, 4.0)
    assert set(matched) >= set(range(len(truth)))
    upper = float(np.median(found.peaks.score))
    fewer = picking.by_shape(prepared(image), (100.0, 140.0), limits(threshold=6.0, upper=upper), 1, refine=False)
    assert fewer.peaks.score.max() <= upper
    assert 0 < len(fewer.peaks) < len(found.peaks)


def test_noise_alone_is_hardly_picked():
    counts = [
        len(picking.by_shape(prepared(noise((300, 300), s)), (110.0, 130.0), limits(), s).peaks) for s in range(4)
    ]
    assert np.median(counts) <= 5


def test_the_ladder_reaches_from_the_smallest_to_the_largest():
    rungs = picking_log.ladder(80, 160)
    assert rungs[0] == pytest.approx(80)
    assert rungs[-1] == pytest.approx(160)
    assert (rungs[1:] / rungs[:-1]).max() <= 1.12 + 1e-9
    assert picking_log.ladder(100, 100).tolist() == [100]


def test_blob_scores_are_highest_at_the_diameter_of_the_blob():
    shape, sizes = (240, 240), np.array([12.0, 17.0, 24.0])
    for i, size in enumerate(sizes):
        image = blob(shape, 120, 90, size / (2 * np.sqrt(2))) + 0.05 * noise(shape)
        score, label = picking_log.blob_scores(image, np.ones(shape, bool), sizes)
        row, column = np.unravel_index(np.argmax(score), shape)
        assert np.hypot(row - 90, column - 120) < 2
        assert label[90, 120] == i


def volume() -> np.ndarray:
    """A lopsided map of three balls, 64 px of 3 Å."""
    box = 64
    ball = soft_sphere(box, 6, 3)
    return sum(w * np.roll(ball, s, (0, 1, 2)) for w, s in ((1, (12, 0, 0)), (1.5, (0, 10, -8)), (1, (-6, -12, 6))))


def planted(templates, prepared_of, shape, truth, which, amplitude=2.0):
    """Noise with templates, dark, at whole pixels."""
    image = noise(shape, 12)
    images = np.fft.fftshift(np.fft.irfft2(to_host(templates.transforms), s=(templates.box,) * 2), axes=(1, 2))
    for (x, y), i in zip(truth, which, strict=True):
        one = images[i] / images[i].std() * amplitude / 2
        half = templates.box // 2
        image[y - half : y + half, x - half : x + half] -= one.astype(np.float32)
    return prepared_of(image)


def test_templates_find_particles_and_their_angles(device):
    shape, box = (200, 220), 48
    made = picking_templates.of_map(device(volume().astype(np.float32)), 3.0, PIXEL, box, 0, "C1", 30.0)
    assert len(made) == 12 * 12
    truth = np.rint(places((150, 170), 14)).astype(int) + 25
    which = np.random.default_rng(8).integers(0, len(made), len(truth))
    ready = planted(made, lambda image: prepared(image, device), shape, truth, which)
    field = Field.of(ready, 1.15 * DIAMETER / 2 / PIXEL)
    seen = picking_templates.seen(made, ready, field.inside, 20.0, None)
    found = picking.by_templates(ready, field, seen, np.zeros(len(made), bool), limits(), 1)
    matched, offset = match(found.peaks.centres, found.peaks.score, truth.astype(float), 3.0)
    assert sorted(matched[matched >= 0]) == list(range(len(truth)))
    assert (matched < 0).sum() <= 1
    assert np.median(offset[matched >= 0]) < 0.3
    right = [made.reference[found.peaks.label[i]] == made.reference[which[m]] for i, m in enumerate(matched) if m >= 0]
    assert np.mean(right) > 0.8


def test_the_ctf_of_the_micrograph_belongs_to_the_templates():
    made = picking_templates.of_map(volume().astype(np.float32), 3.0, PIXEL, 48, 0, "C1", 90.0)
    ready = prepared(noise((120, 120)))
    field = Field.of(ready, 11.0)
    ctf = coefficients(15000, 15000, 0, 300, 2.7, 0.1, 0, 0, 1, PIXEL, 48)
    plain = picking_templates.seen(made, ready, field.inside, 20.0, None)
    through = picking_templates.seen(made, ready, field.inside, 20.0, ctf)
    assert np.allclose((through**2).sum(axis=1), 1, atol=1e-4)
    assert np.allclose(through.mean(axis=1), 0, atol=1e-5)
    assert (plain * through).sum(axis=1).max() < 0.99


def test_decoys_take_away_what_matches_them_better():
    shape, box = (200, 220), 48
    made = picking_templates.of_map(volume().astype(np.float32), 3.0, PIXEL, box, 0, "C1", 30.0)
    ball = soft_sphere(64, 14, 4)
    dirt = picking_templates.of_map(ball, 3.0, PIXEL, box, 0, "O", 360.0)
    truth = np.rint(places((150, 170), 14)).astype(int) + 25
    image = noise(shape, 12)
    for set_of, at in ((made, truth[:8]), (dirt, truth[8:])):
        images = np.fft.fftshift(np.fft.irfft2(set_of.transforms, s=(box,) * 2), axes=(1, 2))
        for number, (x, y) in enumerate(at):
            one = images[(5 * number) % len(images)]
            image[y - 24 : y + 24, x - 24 : x + 24] -= (2.0 * one / one.std() / 2).astype(np.float32)
    ready = prepared(image)
    field = Field.of(ready, 1.15 * DIAMETER / 2 / PIXEL)
    seen = np.concatenate([picking_templates.seen(part, ready, field.inside, 20.0, None) for part in (made, dirt)])
    decoy = np.arange(len(seen)) >= len(made)
    found = picking.by_templates(ready, field, seen, decoy, limits(threshold=5.0), 1)
    matched, _ = match(found.peaks.centres, found.peaks.score, truth.astype(float), 4.0)
    assert set(matched) - {-1} == set(range(8))
    assert found.beaten >= 5
    without = picking.by_templates(ready, field, seen[~decoy], decoy[~decoy], limits(threshold=5.0), 1)
    matched, _ = match(without.peaks.centres, without.peaks.score, truth.astype(float), 4.0)
    assert len(set(matched) - set(range(8)) - {-1}) >= 5


def test_limits_leave_out_dark_and_rough_places():
    shape = (240, 250)
    truth = places(shape, 20)
    image = noise(shape) - 2.5 * sum(blob(shape, x, y, 0.3 * DIAMETER / PIXEL) for x, y in truth)
    half = np.arange(shape[1]) > 125
    image = np.where(half, 2 * image - 3, image).astype(np.float32)
    everything = picking.by_shape(prepared(image), (100.0, 140.0), limits(threshold=4.0), 1)
    assert (everything.peaks.centres[:, 0] > 140).any()
    for more in ({"max_stddev": 1.9}, {"min_average": -2.5}):
        found = picking.by_shape(prepared(image), (100.0, 140.0), limits(threshold=4.0, **more), 1)
        assert (found.peaks.centres[:, 0] < 140).all()
        assert len(found.peaks) >= 4


def test_the_diameter_of_references_is_found():
    assert picking_templates.map_diameter(soft_sphere(64, 18, 2), 3.0) == pytest.approx(2 * 18 * 3, rel=0.12)
    images = np.stack([soft_sphere(48, 12, 1, 2)] * 3)
    assert picking_templates.image_diameter(images, 4.0) == pytest.approx(2 * 12 * 4, rel=0.12)

"""Figures: what is drawn where, and files that are whole or not there."""

from __future__ import annotations

import numpy as np
import pytest

from spa.errors import InputError
from spa.io import plots
from tests.half_maps import radius


def test_a_figure_is_saved_as_png(tmp_path):
    path = plots.save(tmp_path / "new" / "figure.png", plots.fsc({"unmasked": np.linspace(1, 0, 17)}, 32, 2.0))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        plots.save(tmp_path / "file" / "figure.png", plots.fsc({"unmasked": np.linspace(1, 0, 17)}, 32, 2.0))


def test_the_fsc_figure_marks_the_resolution_at_its_frequency():
    curve = np.linspace(1, 0, 33)
    figure = plots.fsc({"unmasked": curve}, 64, 2.0, shell=16, randomise_from=8)
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert lines["unmasked"] == pytest.approx(np.arange(1, 33) / 128)
    assert lines["FSC = 0.143 at 8.00 Å"] == pytest.approx([16 / 128] * 2)
    assert lines["phases random beyond 16.0 Å"] == pytest.approx([8 / 128] * 2)
    assert "1/Å" in axes.get_xlabel()


def test_the_guinier_figure_leaves_out_shells_without_amplitude():
    inverse_d2 = (np.arange(17) / 64) ** 2
    curve = np.where(np.arange(17) < 10, -5 - 20 * inverse_d2, -99.0)
    figure = plots.guinier(inverse_d2, {"original": curve}, fit=(-20, -5), fit_range=(10, 0), bfactor=-80)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert len(lines["original"].get_xdata()) == 9  # shells 1 to 9
    assert lines["fit, B = -80 Å²"].get_ydata() == pytest.approx([-5.2, -5 - 20 * inverse_d2[-1]])


def test_slices_show_each_map_along_each_axis():
    volume = radius(16, (3, 0, 0)) < 4
    figure = plots.slices({"a": volume.astype(float), "b": volume.astype(float)}, 2.0, contour=volume.astype(float))
    assert len(figure.axes) == 6
    across_y = figure.axes[1]
    assert (across_y.get_xlabel(), across_y.get_ylabel()) == ("x (Å)", "z (Å)")
    image = across_y.get_images()[0]
    rows = np.average(np.arange(16), weights=np.asarray(image.get_array()).sum(axis=1))
    assert rows == pytest.approx(8 + 3)
    assert image.get_extent() == pytest.approx((-17, 15, -17, 15))


@pytest.mark.parametrize(("rot", "tilt"), [(60.0, 50.0), (-120.0, 140.0), (240.0, 90.0)])
def test_orientations_lie_where_they_belong(rot, tilt):
    rng = np.random.default_rng(0)
    n = 4000
    figure = plots.orientations(rot + rng.normal(size=n), tilt + rng.normal(size=n))
    mesh = figure.axes[0].collections[0]
    density = mesh.get_array().reshape(180, 360)
    row, column = np.unravel_index(np.argmax(density), density.shape)
    longitude = (rot + 180) % 360 - 180
    assert column - 180 == pytest.approx(longitude, abs=10)
    assert row - 90 == pytest.approx(90 - tilt, abs=10)


def test_an_even_distribution_is_drawn_as_one_everywhere():
    rng = np.random.default_rng(1)
    n = 200_000
    figure = plots.orientations(rng.uniform(-180, 180, n), np.degrees(np.arccos(rng.uniform(-1, 1, n))))
    density = figure.axes[0].collections[0].get_array()
    in_cells = 200_000 / (36 * 72)
    assert density.std() == pytest.approx(in_cells**-0.5, rel=0.1)
    assert np.abs(density - 1).max() < 5 * in_cells**-0.5

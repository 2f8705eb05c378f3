"""Pictures of classes: every number and label is there, whatever the number of classes."""

from __future__ import annotations

import warnings

import matplotlib.image
import numpy as np
import pytest

from spa.io import class_plots, plots


def texts(figure) -> list[str]:
    """All words in a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("n", [1, 10, 57, 200])
def test_a_gallery_shows_every_class_largest_first(tmp_path, n):
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(n))
    figure = class_plots.gallery(rng.normal(size=(n, 32, 32)), np.arange(1, n + 1), shares, np.full(n, 9.87), 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(tmp_path / "gallery.png", figure)
    labels = texts(figure)
    assert [int(label.split()[0]) for label in labels] == (np.argsort(-shares, kind="stable") + 1).tolist()
    assert all("9.9 Å" in label and "%" in label for label in labels)
    picture = matplotlib.image.imread(tmp_path / "gallery.png")
    assert picture.shape[1] == 1320
    assert picture.shape[0] < 4000


def test_labels_do_not_run_into_the_next_image(tmp_path):
    for n in (10, 200):
        figure = class_plots.gallery(
            np.random.default_rng(1).normal(size=(n, 16, 16)),
            np.arange(101, 101 + n),
            np.full(n, 1 / n),
            np.full(n, 12.3),
            2.0,
            np.linspace(0, 1, n),
        )
        plots.save(tmp_path / "g.png", figure)
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        frames = [patch.get_window_extent() for patch in figure.axes[0].patches]
        assert len(boxes) == len(frames) == n
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(box.overlaps(frame) for box in boxes for frame in frames)


def test_scores_decide_the_order_and_empty_classes_are_said_to_be_empty():
    images = np.random.default_rng(1).normal(size=(3, 16, 16))
    images[1] = 0
    scores, kept = [0.2, 0.0, 0.9], [False, False, True]
    figure = class_plots.gallery(images, [1, 2, 3], [0.9, 0, 0.1], [9.0, np.inf, 8.0], 2.0, scores, kept)
    labels = texts(figure)
    assert [label.split()[0] for label in labels] == ["3", "1", "empty", "2"]
    assert "score 0.90" in labels[0]
    assert any("–" in label for label in texts(figure))


def test_one_bright_pixel_does_not_hide_an_average():
    image = np.random.default_rng(1).normal(size=(1, 64, 64))
    image[0, 3, 3], image[0, 32, 32] = 1e6, 1e5
    figure = class_plots.gallery(image, [1], [1.0], [9.0], 2.0)
    low, high = figure.axes[0].images[0].get_clim()
    assert -5 < low < -1
    assert 1 < high < 5


@pytest.mark.parametrize("n", [1, 2, 6])
def test_3d_classes_side_by_side(tmp_path, n):
    rng = np.random.default_rng(2)
    history = rng.dirichlet(np.ones(n), 12)
    figure = class_plots.classes3d(rng.normal(size=(n, 16, 16, 16)), 3.0, history, np.full(n, 7.5), ["one line"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(tmp_path / "classes.png", figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == n
    assert f"class 1\n{100 * history[-1, 0]:.1f} %, 7.5 Å" in titles
    lines = figure.axes[-1].lines
    np.testing.assert_allclose([line.get_ydata() for line in lines], 100 * history.T)

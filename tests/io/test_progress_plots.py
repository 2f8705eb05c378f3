"""The picture that grows with a refinement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spa.io import mrc, progress_plots
from spa.io.progress_plots import Shown


def shown(folder: Path, iteration: int, size: int = 16) -> Shown:
    path = folder / f"run_it{iteration:03d}_half1_class001.mrc"
    mrc.write_volume(path, np.random.default_rng(iteration).normal(size=(size,) * 3).astype(np.float32), 4.0)
    frequency = np.arange(size // 2 + 1) / (size * 4.0)
    return Shown(iteration, 30.0 / iteration, 10.0 / iteration, frequency, np.exp(-frequency * iteration * 9), path)


def test_every_iteration_has_its_point_its_curve_and_some_their_slice(tmp_path: Path) -> None:
    figure = progress_plots.figure([shown(tmp_path, k) for k in range(1, 9)])
    named = {axes.get_ylabel().split(",")[0]: axes for axes in figure.axes}
    resolution, accuracy, fsc = (
        named[n] for n in ("resolution", "expected angular accuracy (°)", "FSC of the half maps")
    )
    np.testing.assert_allclose(resolution.get_lines()[0].get_ydata(), [30 / k for k in range(1, 9)])
    np.testing.assert_allclose(accuracy.get_lines()[0].get_xdata(), range(1, 9))
    assert len(fsc.get_lines()) == 8 + 2
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[0] == "iteration 1: 30.0 Å"
    assert titles[-1] == "iteration 8: 3.8 Å"
    assert len(titles) == 5


@pytest.mark.parametrize("gone", [0, 1])
def test_maps_that_are_gone_are_left_out(tmp_path: Path, gone: int) -> None:
    both = [shown(tmp_path, 1), shown(tmp_path, 2)]
    both[gone].path.unlink()
    figure = progress_plots.figure(both)
    assert sum(bool(axes.get_title()) for axes in figure.axes) == 1

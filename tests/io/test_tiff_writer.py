"""Movies written frame by frame: what is read back, what TIFF and MRC hold, and nothing where it went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from spa.errors import InputError
from spa.io import mrc
from spa.io.tiff_writer import write_mrcs, write_tiff

SHAPE = (70, 100)


def _frames(dtype: type, n: int = 3) -> NDArray[np.integer]:  # type: ignore[type-arg]
    return np.random.default_rng(1).poisson(5, (n, *SHAPE)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_is_lzw_and_upside_down(tmp_path: Path, dtype: type) -> None:
    frames = _frames(dtype)
    write_tiff(tmp_path / "movie.tiff", iter(frames), 3, SHAPE)
    with tifffile.TiffFile(tmp_path / "movie.tiff") as file:
        assert len(file.pages) == 3
        assert {page.compression for page in file.pages} == {tifffile.COMPRESSION.LZW}
        assert not file.is_bigtiff
        stored = file.asarray()
    assert stored.dtype == dtype
    assert np.array_equal(stored[:, ::-1], frames)
    assert (tmp_path / "movie.tiff").stat().st_size < frames.nbytes


def test_mrcs_holds_the_counts_and_their_statistics(tmp_path: Path) -> None:
    frames = _frames(np.uint8)
    write_mrcs(tmp_path / "movie.mrcs", iter(frames), 3, SHAPE, 1.25)
    found, pixel_size = mrc.read(tmp_path / "movie.mrcs")
    assert np.array_equal(found, frames)
    assert pixel_size == pytest.approx(1.25)
    assert mrc.info(tmp_path / "movie.mrcs").mode == 1
    import mrcfile

    with mrcfile.open(tmp_path / "movie.mrcs") as file:
        assert mrcfile.validate(tmp_path / "movie.mrcs")
        assert file.header.dmean == pytest.approx(frames.mean())
        assert file.header.rms == pytest.approx(frames.std())
        assert (file.header.dmin, file.header.dmax) == (frames.min(), frames.max())


@pytest.mark.parametrize("write", [write_tiff, lambda *args: write_mrcs(*args, 1.0)])
def test_nothing_is_left_of_a_movie_that_was_not_finished(tmp_path: Path, write: object) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield _frames(np.uint8)[0]
        raise KeyboardInterrupt

    assert callable(write)
    for frames, error in ((broken(), KeyboardInterrupt), (iter(_frames(np.uint8, 2)), ValueError)):
        with pytest.raises(error):
            write(tmp_path / "movie", frames, 3, SHAPE)
    for frames, shape in ((iter(_frames(np.uint8)), (70, 99)), (iter(_frames(np.uint8, 4)), SHAPE)):
        with pytest.raises((ValueError, IndexError)):
            write(tmp_path / "movie", frames, 3, shape)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_tiff(tmp_path / "file" / "movie.tiff", iter(_frames(np.uint8)), 3, SHAPE)

"""Movies read frame by frame: formats, orientation, damage; gain references and defects."""

from __future__ import annotations

from functools import partial

import mrcfile
import numpy as np
import pytest
import tifffile

from spa.errors import InputError
from spa.io.detector import gain_for_movie, read_defects, read_gain
from spa.io.movie import open_movie
from spa.io.tiff_pages import tiff_shape
from tests.eer import write_eer
from tests.movies import write_mrc, write_tiff

SHAPE = (64, 96)


def counts(dtype: type, n_frames: int = 5) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.poisson(3, (n_frames, *SHAPE)).astype(dtype)


def electrons(n_frames: int, seed: int = 5) -> list[np.ndarray]:
    """Row and column in quarter pixels of 150 electrons a frame, each in a pixel of its own."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n_frames):
        row, column = np.divmod(rng.choice(SHAPE[0] * SHAPE[1], 150, replace=False), SHAPE[1])
        frames.append(np.stack([4 * row + rng.integers(4, size=150), 4 * column + rng.integers(4, size=150)], axis=1))
    return frames


def drawn(frames: list[np.ndarray], upsampling: int) -> np.ndarray:
    """The counts that electrons make on pixels, or on pixels of half the size."""
    image = np.zeros((SHAPE[0] * upsampling, SHAPE[1] * upsampling), dtype=int)
    for frame in frames:
        np.add.at(image, tuple((frame * upsampling // 4).T), 1)
    return image


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_frames_come_back_as_stored_first_row_lowest(tmp_path, dtype, compression):
    frames = counts(dtype)
    write_tiff(tmp_path / "m.tif", frames, compression)
    with open_movie(tmp_path / "m.tif") as movie:
        assert (len(movie), movie.shape, movie.dtype) == (5, SHAPE, np.dtype(dtype))
        np.testing.assert_array_equal(np.stack(list(movie)), frames)
        assert movie.frame(0).dtype == dtype
    assert (tifffile.imread(tmp_path / "m.tif", key=0)[0] == frames[0, -1]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
def test_mrc_frames_come_back_as_stored(tmp_path, dtype):
    frames = counts(dtype)
    with mrcfile.new(tmp_path / "m.mrcs", frames) as file:
        file.set_image_stack()
    with open_movie(tmp_path / "m.mrcs") as movie:
        assert (len(movie), movie.shape) == (5, SHAPE)
        np.testing.assert_array_equal(movie.frame(4), frames[4])
        assert movie.frame(4).dtype == dtype


@pytest.mark.parametrize("run_bits", [7, 8])
@pytest.mark.parametrize("upsampling", [1, 2])
def test_eer_electrons_are_counted_in_groups(tmp_path, run_bits, upsampling):
    frames = electrons(7)
    write_eer(tmp_path / "m.eer", frames, SHAPE, run_bits)
    with open_movie(tmp_path / "m.eer", eer_grouping=3, eer_upsampling=upsampling) as movie:
        assert len(movie) == 2
        assert movie.shape == (SHAPE[0] * upsampling, SHAPE[1] * upsampling)
        for group in range(2):
            expected = drawn(frames[3 * group : 3 * group + 3], upsampling)
            np.testing.assert_array_equal(movie.frame(group), expected)


def test_eer_groups_of_more_than_255_frames_do_not_overflow(tmp_path):
    frames = [electrons(1)[0]] * 300
    write_eer(tmp_path / "m.eer", frames, SHAPE)
    with open_movie(tmp_path / "m.eer", eer_grouping=300) as movie:
        np.testing.assert_array_equal(movie.frame(0), 300 * drawn(frames[:1], 1))


def cut(path, fraction: float):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_a_truncated_tiff_is_refused(tmp_path, compression, fraction):
    write_tiff(tmp_path / "m.tif", counts(np.uint16, 8), compression)
    cut(tmp_path / "m.tif", fraction)
    with pytest.raises(InputError, match=r"m\.tif: (truncated|corrupt|expected a TIFF)"):
        open_movie(tmp_path / "m.tif")
    with pytest.raises(InputError, match=r"m\.tif: (truncated|corrupt|expected a TIFF)"):
        tiff_shape(tmp_path / "m.tif")


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9, 0.999])
def test_a_truncated_eer_is_refused(tmp_path, fraction):
    write_eer(tmp_path / "m.eer", electrons(6), SHAPE)
    cut(tmp_path / "m.eer", fraction)
    with pytest.raises(InputError, match=r"m\.eer: (truncated|corrupt)"):
        open_movie(tmp_path / "m.eer", eer_grouping=1)
    with pytest.raises(InputError, match=r"m\.eer: (truncated|corrupt)"):
        tiff_shape(tmp_path / "m.eer")


def test_frames_are_counted_without_reading_them(tmp_path):
    write_tiff(tmp_path / "m.tif", counts(np.uint8, 7))
    assert tiff_shape(tmp_path / "m.tif") == (7, *SHAPE)
    write_eer(tmp_path / "m.eer", electrons(6), SHAPE, promised=6)
    assert tiff_shape(tmp_path / "m.eer") == (6, *SHAPE)


def test_an_eer_with_fewer_frames_than_its_header_says_is_refused(tmp_path):
    write_eer(tmp_path / "m.eer", electrons(6), SHAPE, promised=8)
    for read in (tiff_shape, partial(open_movie, eer_grouping=1)):
        with pytest.raises(InputError, match="promises 8 EER frames, found 6"):
            read(tmp_path / "m.eer")


def test_too_few_eer_frames_for_a_group(tmp_path):
    write_eer(tmp_path / "m.eer", electrons(6), SHAPE)
    with pytest.raises(InputError, match="at least --eer_grouping 40 EER frames, found 6"):
        open_movie(tmp_path / "m.eer")


def test_what_is_no_movie_is_refused_in_a_line(tmp_path):
    (tmp_path / "text.tif").write_text("not an image")
    (tmp_path / "folder.tif").mkdir()
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        file.write(np.zeros((8, 8), np.uint8))
        file.write(np.zeros((8, 9), np.uint8))
    for name, reason in {
        "text.tif": "expected a TIFF",
        "folder.tif": "found a folder",
        "absent.tif": "found nothing there",
        "rgb.tif": "expected frames of grey values",
        "sizes.tif": "expected frames of one size",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: .*{reason}") as caught:
            open_movie(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_damaged_lzw_data_name_the_frame(tmp_path):
    write_tiff(tmp_path / "m.tif", counts(np.uint8))
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        start, size = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    raw = bytearray((tmp_path / "m.tif").read_bytes())
    raw[start : start + size] = b"\xff" * size
    (tmp_path / "m.tif").write_bytes(bytes(raw))
    with open_movie(tmp_path / "m.tif") as movie:
        movie.frame(1)
        with pytest.raises(InputError, match=r"frame 3 cannot be decoded"):
            movie.frame(2)


def test_gain_turns_and_flips(tmp_path):
    gain = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    write_mrc(tmp_path / "gain.mrc", gain)
    # rows are counted from the bottom: a clockwise quarter turn brings the lowest row to the left
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.mrc", rotation=1), [[4, 1], [5, 2], [6, 3]])
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.mrc", rotation=2), gain[::-1, ::-1])
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.mrc", flip=1), gain[::-1])
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.mrc", flip=2), gain[:, ::-1])
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.mrc", rotation=1, flip=1), [[6, 3], [5, 2], [4, 1]])


def test_a_tiff_gain_lies_as_a_tiff_movie_does(tmp_path):
    gain = np.random.default_rng(0).uniform(0.8, 1.2, SHAPE).astype(np.float32)
    write_tiff(tmp_path / "gain.tif", gain[None])
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.tif"), gain)


def test_a_gain_of_another_size_is_refused(tmp_path):
    gain = np.ones((96, 64), dtype=np.float32)
    with pytest.raises(
        InputError, match=r"m\.tif: frames of 96 x 64 pixels, but gain reference of 64 x 96 in gain\.mrc: .*gain_rot"
    ):
        gain_for_movie(gain, "gain.mrc", "m.tif", SHAPE)


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.0])
def test_a_gain_of_nonsense_is_refused(tmp_path, value):
    write_mrc(tmp_path / "gain.mrc", np.full(SHAPE, value, dtype=np.float32))
    with pytest.raises(InputError, match="expected a gain reference of finite values"):
        read_gain(tmp_path / "gain.mrc")


def test_eer_frames_are_divided_by_a_gain_and_multiplied_by_a_gain_file():
    gain = np.full(SHAPE, 2.0, dtype=np.float32)
    gain[0, :2] = 4.0, 0.0
    divided = gain_for_movie(gain, "gain.mrc", "m.eer", SHAPE)
    assert divided[0, 0] == pytest.approx(divided[5, 5] / 2)
    assert divided[0, 1] == 0
    assert divided[5, 5] == pytest.approx(gain.mean() / 2)
    np.testing.assert_array_equal(gain_for_movie(gain, "x.gain", "m.eer", SHAPE), gain)
    twice = gain_for_movie(gain, "x.gain", "m.eer", (128, 192))
    np.testing.assert_array_equal(twice[:2, :4], [[4, 4, 0, 0]] * 2)


def test_defects_from_a_map_and_a_list(tmp_path):
    bad = np.zeros(SHAPE, dtype=bool)
    bad[3:5, 10:14] = bad[60:, 90:] = True
    write_mrc(tmp_path / "defects.mrc", bad.astype(np.float32))
    (tmp_path / "defects.txt").write_text("# x y w h\n10 3 4 2\n\n90 60 50 50\n")
    for name in ("defects.mrc", "defects.txt"):
        np.testing.assert_array_equal(read_defects(tmp_path / name, SHAPE), bad)
    (tmp_path / "bad.txt").write_text("10 3 4 2\n1 2 3\n")
    with pytest.raises(InputError, match=r"bad\.txt, line 2: expected x y width height"):
        read_defects(tmp_path / "bad.txt", SHAPE)
    with pytest.raises(InputError, match=r"defect map of 96 x 64 pixels for frames of 64 x 96"):
        read_defects(tmp_path / "defects.mrc", SHAPE[::-1])

"""MRC maps and stacks: round trips, other programs, damaged files refused by name."""

from __future__ import annotations

import gzip
import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spa.errors import InputError
from spa.io import mrc

RNG = np.random.default_rng(1)


def volume(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@given(hnp.arrays(np.float32, (4, 4, 4), elements=st.floats(-1e4, 1e4, width=32)), st.floats(0.2, 20.0))
def test_a_map_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, data: np.ndarray, pixel_size: float
) -> None:
    path = tmp_path_factory.mktemp("mrc") / "map.mrc"
    mrc.write_volume(path, data, pixel_size)
    found, size = mrc.read_volume(path)
    np.testing.assert_array_equal(found, data)
    assert found.dtype == np.float32
    assert size == pytest.approx(pixel_size, rel=1e-5)


def test_the_same_data_give_the_same_bytes_at_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, written = volume(4, 6, 6), []
    for year in (2001, 2002):
        clock = SimpleNamespace(now=lambda year=year: datetime(year, 1, 1))
        monkeypatch.setattr("mrcfile.mrcobject.datetime", clock)
        mrc.write_stack(tmp_path / "a.mrcs", images, 1.5)
        mrc.write_volume(tmp_path / "a.mrc", images, 1.5)
        with mrc.stack_writer(tmp_path / "b.mrcs", 4, 6, 1.5) as writer:
            writer.append(images)
        written.append([(tmp_path / name).read_bytes() for name in ("a.mrcs", "a.mrc", "b.mrcs")])
    assert written[0] == written[1]
    with mrcfile.open(tmp_path / "b.mrcs", header_only=True) as file:
        assert [str(label) for label in file.get_labels()] == ["Created by spa"]


def test_axes_are_z_y_x_with_x_fastest(tmp_path: Path) -> None:
    data = np.zeros((2, 4, 6), dtype=np.float32)
    data[1, 2, 3] = 1
    mrc.write_volume(tmp_path / "a.mrc", data, 1.0)
    raw = np.fromfile(tmp_path / "a.mrc", dtype="<f4", offset=1024)
    assert raw.argmax() == 3 + 6 * (2 + 4 * 1)
    header = np.fromfile(tmp_path / "a.mrc", dtype="<i4", count=4)
    assert header.tolist() == [6, 4, 2, 2]
    assert mrc.info(tmp_path / "a.mrc").shape == (2, 4, 6)


@pytest.mark.parametrize("float16", [False, True])
def test_mrcfile_finds_our_files_valid(tmp_path: Path, float16: bool) -> None:
    images = volume(5, 8, 8)
    mrc.write_volume(tmp_path / "a.mrc", images[:4], 1.5, float16)
    mrc.write_stack(tmp_path / "a.mrcs", images, 1.5, float16)
    with mrc.stack_writer(tmp_path / "b.mrcs", 5, 8, 1.5, float16) as writer:
        writer.append(images[:2])
        writer.append(images[2])
        writer.append(images[3:])
    for name in ("a.mrc", "a.mrcs", "b.mrcs"):
        with mrcfile.open(tmp_path / name) as file:
            assert file.is_image_stack() == name.endswith("s")
            assert file.data.dtype == (np.float16 if float16 else np.float32)
            assert file.voxel_size.x == pytest.approx(1.5)
        assert mrcfile.validate(tmp_path / name)
    np.testing.assert_array_equal(mrc.read(tmp_path / "a.mrcs")[0], mrc.read(tmp_path / "b.mrcs")[0])
    np.testing.assert_allclose(mrc.read(tmp_path / "b.mrcs")[0], images, rtol=1e-3 if float16 else 0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_and_byte_order(tmp_path: Path, dtype: type, order: str) -> None:
    data = RNG.integers(0, 100, (3, 4, 6)).astype(dtype)
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(data)
    raw = mrcfile.read(tmp_path / "a.mrcs")
    path = tmp_path / "a.mrcs"
    if order == ">":
        with mrcfile.open(path) as file:
            header = file.header.astype(file.header.dtype.newbyteorder(">"))
        header["machst"] = [0x11, 0x11, 0, 0]
        path.write_bytes(header.tobytes() + raw.astype(raw.dtype.newbyteorder(">")).tobytes())
    np.testing.assert_array_equal(mrc.read(path)[0], data.astype(np.float32))
    reader = mrc.StackReader()
    np.testing.assert_array_equal(reader.read(path, np.array([2, 0, 2])), data[[2, 0, 2]].astype(np.float32))
    np.testing.assert_array_equal(reader.read(path, 1), data[1].astype(np.float32))
    assert reader.read(path, 1).dtype == np.float32


def test_gzipped_maps_and_permuted_axes(tmp_path: Path) -> None:
    data = volume(4, 4, 4)
    mrc.write_volume(tmp_path / "a.mrc", data, 2.0)
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    np.testing.assert_array_equal(mrc.read_volume(tmp_path / "a.mrc.gz")[0], data)
    with mrcfile.new(tmp_path / "p.mrc") as file:  # columns along z, rows along x, sections along y
        file.set_data(np.ascontiguousarray(data.transpose(1, 2, 0)))
        file.header.mapc, file.header.mapr, file.header.maps = 3, 1, 2
        file.voxel_size = 2.0
    np.testing.assert_array_equal(mrc.read_volume(tmp_path / "p.mrc")[0], data)


def test_an_extended_header_is_stepped_over(tmp_path: Path) -> None:
    data = volume(4, 4, 4)
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(data)
        file.set_extended_header(np.frombuffer(b"x" * 160, dtype="V80"))
        file.voxel_size = 1.0
    assert mrc.info(tmp_path / "a.mrc").offset == 1184
    np.testing.assert_array_equal(mrc.read_volume(tmp_path / "a.mrc")[0], data)


def damaged(path: Path, change: str) -> None:
    """A stack of 100 images of 64 x 64 pixels with something wrong."""
    mrc.write_stack(path, np.zeros((100, 64, 64), dtype=np.float32), 1.0)
    if change == "truncated":
        os.truncate(path, 1024 + 900_000)
    elif change == "trailing":
        path.write_bytes(path.read_bytes() + b"xyz")
    elif change == "short":
        os.truncate(path, 1000)
    elif change == "empty":
        os.truncate(path, 0)
    elif change == "text":
        path.write_bytes(b"data_particles\n" * 1000)
    else:
        field, value = change.split("=")
        with mrcfile.open(path, mode="r+") as file:
            file.header[field] = int(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "truncated",
            "truncated: header promises 100 x 64 x 64 float32 (1,638,400 bytes of data), file has 900,000",
        ),
        (
            "trailing",
            "trailing bytes: header promises 100 x 64 x 64 float32 (1,638,400 bytes of data), file has 1,638,403",
        ),
        ("short", "expected an MRC file, found 1000 bytes, less than its header of 1024"),
        ("empty", "expected a map or stack, found an empty file"),
        ("text", "expected an MRC file, found a header whose axes and mode make no sense"),
        ("mode=4", "MRC mode 4 cannot be read; expected one of 0 (int8), 1 (int16), 2 (float32), 6 (uint16), 12"),
        ("nx=-5", "corrupt MRC header: 100 x 64 x -5 pixels, 0 extended bytes"),
        ("nsymbt=-1", "corrupt MRC header: 100 x 64 x 64 pixels, -1 extended bytes"),
        ("nz=2000000000", "truncated: header promises 2000000000 x 64 x 64 float32 (32,768,000,000,000 bytes of data)"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "a.mrcs"
    damaged(path, change)
    with pytest.raises(InputError) as error:
        mrc.StackReader().read(path, 0)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("shape", "pixel_size", "message"),
    [
        ((4, 4, 6), 1.0, "expected a cubic map, found 4 x 4 x 6 voxels"),
        ((5, 5, 5), 1.0, "expected an even box, found 5 pixels"),
        ((4, 4, 4), 0.0, "expected a pixel size in the header, found 0 A"),
    ],
)
def test_what_is_no_map_for_us_is_refused(
    tmp_path: Path, shape: tuple[int, ...], pixel_size: float, message: str
) -> None:
    mrc.write_volume(tmp_path / "a.mrc", volume(*shape), pixel_size)
    with pytest.raises(InputError) as error:
        mrc.read_volume(tmp_path / "a.mrc")
    assert str(error.value) == f"{tmp_path / 'a.mrc'}: {message}"


def test_a_map_with_a_nan_and_a_damaged_gzip_are_refused(tmp_path: Path) -> None:
    data = volume(4, 4, 4)
    data[1, 2, 3] = np.nan
    mrc.write_volume(tmp_path / "a.mrc", data, 1.0)
    with pytest.raises(InputError, match=r"a\.mrc: expected finite voxels, found 1 that are not"):
        mrc.read_volume(tmp_path / "a.mrc")
    (tmp_path / "b.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes())[:200])
    with pytest.raises(InputError, match=r"b\.mrc\.gz: cannot be read: "):
        mrc.read_volume(tmp_path / "b.mrc.gz")


@pytest.mark.parametrize("index", [-1, 5])
def test_an_image_beyond_the_stack_is_refused(tmp_path: Path, index: int) -> None:
    mrc.write_stack(tmp_path / "a.mrcs", volume(5, 8, 8), 1.0)
    with pytest.raises(InputError, match=rf"a\.mrcs: no image {index + 1}; the stack holds 5"):
        mrc.StackReader().read(tmp_path / "a.mrcs", np.array([0, index]))


def test_few_stacks_stay_open(tmp_path: Path) -> None:
    images = volume(6, 8, 8)
    for i in range(6):
        mrc.write_stack(tmp_path / f"{i}.mrcs", images[i], 1.0)
    reader = mrc.StackReader(n_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for i in range(6):
            np.testing.assert_array_equal(reader.read(tmp_path / f"{i}.mrcs", 0), images[i])
    maps = Path("/proc/self/maps").read_text()
    assert sum(f"{tmp_path / str(i)}.mrcs" in maps for i in range(6)) <= 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_an_unfinished_stack_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 images written"), mrc.stack_writer(tmp_path / "a", 2, 8, 1.0) as w:
        w.append(volume(8, 8))
    with pytest.raises(ValueError, match="does not fit"), mrc.stack_writer(tmp_path / "a", 2, 8, 1.0) as w:
        w.append(volume(2, 8, 6))
    with pytest.raises(ValueError, match="does not fit"), mrc.stack_writer(tmp_path / "a", 2, 8, 1.0) as w:
        w.append(volume(3, 8, 8))
    assert os.listdir(tmp_path) == []


def test_maps_and_stacks_of_others(shared_data: Path) -> None:
    data, pixel_size = mrc.read_volume(shared_data / "maps" / "EMD-3197.map")
    zipped, _ = mrc.read_volume(shared_data / "maps" / "emd_3197.map.gz")
    np.testing.assert_array_equal(data, zipped)
    assert pixel_size == pytest.approx(11.4)
    for name in ("EMD-3197.map", "emd_1832.map", "emd_5625.map"):
        path = shared_data / "maps" / name
        np.testing.assert_array_equal(mrc.read(path)[0], mrcfile.read(path))
    stack = shared_data / "bgal_particles" / "stacks" / "20170629_00021_frameImage.mrcs"
    assert mrc.info(stack).mode == 12
    np.testing.assert_array_equal(mrc.StackReader().read(stack, 17), mrcfile.read(stack)[17].astype(np.float32))

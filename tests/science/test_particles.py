"""Particles as columns, their files and their images."""

from __future__ import annotations

import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa import ctf
from spa.errors import InputError
from spa.io import mrc, star
from spa.io.particle_io import ParticleImages, read_particles, split_image_name, to_star, write_particles
from spa.particles import COLUMNS, OpticsGroup, Particles

BOX = 8
GROUPS = [
    OpticsGroup(1, "opticsGroup1", 1.5, BOX, 300.0, 2.7, 0.1),
    OpticsGroup(4, "opticsGroup4", 1.5, BOX, 200.0, 1.4, 0.07, "mtf.star", 0.75),
]


def make(n: int = 6) -> Particles:
    """Particles in two stacks and two optics groups."""
    i = np.arange(n)
    return Particles.create(
        GROUPS,
        i % 2,
        image_name=[f"{k // 2 + 1:06d}@stacks/{'ab'[k % 2]}.mrcs" for k in i],
        micrograph_name=[f"mic{k % 3}.mrc" for k in i],
        defocus_u=10000.0 + i,
        defocus_v=9000.0 + i,
        defocus_angle=10.0 * i,
        rot=1.0 * i,
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with particles.star and its two stacks; image k of stack s is filled with 10 k + s."""
    monkeypatch.chdir(tmp_path)
    for s in range(2):
        images = np.arange(3)[:, None, None] * 10 + s + np.zeros((3, BOX, BOX))
        mrc.write_stack(f"stacks/{'ab'[s]}.mrcs", images, 1.5, float16=s == 1)
    write_particles("particles.star", make())
    return tmp_path


def edit(old: str, new: str, path: str = "particles.star") -> str:
    """Replace text in a file, which must be there."""
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))
    return path


# Files


def test_a_file_gives_back_what_was_written(project: Path) -> None:
    before, after = make(), read_particles("particles.star")
    for name in (*COLUMNS, "optics_index"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    assert after.optics == [GROUPS[0].__class__(**{**vars(GROUPS[0]), "mtf_pixel_size": 1.5}), GROUPS[1]]
    assert (len(after), after.n, after.box_size, after.pixel_size) == (6, 6, BOX, 1.5)
    assert after.has_ctf


def test_columns_that_did_not_change_keep_their_text(project: Path) -> None:
    edit("10000.000000", "1.0e4")
    edit("_rlnAngleRot", "_mineOwn #9\n_rlnAngleRot")
    text = Path("particles.star").read_text().splitlines()
    text = [line.replace(".mrcs ", ".mrcs 007 ") if "@" in line else line for line in text]
    head = [line for line in text if "_mineOwn" not in line]
    head.insert(next(i for i, line in enumerate(head) if "_rlnMicrographName" in line), "_mineOwn #2")
    Path("particles.star").write_text("\n".join([*head, "data_extra", "_other 'x y'", ""]))
    particles = read_particles("particles.star")
    particles.rot[2] += 90
    particles.update(np.array([1]), psi=12.5)
    found = to_star(particles.subset(np.array([2, 0, 1])))
    table = found["particles"]
    assert found.names == ["optics", "particles", "extra"]
    assert table.text("mineOwn") == ["007"] * 3
    assert table.text("rlnDefocusU") == ["10002.000000", "1.0e4", "10001.000000"]
    np.testing.assert_array_equal(table.floats("rlnAngleRot"), [92, 0, 1])
    np.testing.assert_array_equal(table.floats("rlnAnglePsi"), [0, 0, 12.5])
    assert "rlnAngleTilt" not in table
    assert particles.source["particles"].floats("rlnAngleRot").tolist() == [0, 1, 2, 3, 4, 5]


def test_defaults_are_not_written_unless_set() -> None:
    particles = make()
    assert "rlnClassNumber" not in to_star(particles)["particles"]
    particles.update(class_number=0)
    assert to_star(particles)["particles"].integers("rlnClassNumber").tolist() == [0] * 6


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=5))
def test_numbers_survive_to_six_decimals(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("particles") / "p.star"
    particles = Particles.create(GROUPS[:1], np.zeros(len(values)), image_name="000001@x.mrcs", origin_x_angst=values)
    write_particles(path, particles)
    np.testing.assert_allclose(read_particles(path).origin_x_angst, values, rtol=1e-6, atol=5e-7)


def test_names_beside_the_file_are_rewritten_for_the_current_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    Path("mtf.star").touch()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    particles = read_particles(project / "particles.star")
    write_particles("out/subset.star", particles.subset(particles.half_set == 0))
    again = read_particles("out/subset.star")
    assert again.image_name[0] == f"000001@{project}/stacks/a.mrcs"
    assert again.optics[1].mtf_name == f"{project}/mtf.star"
    assert again.micrograph_name[0] == "mic0.mrc"
    assert ParticleImages(again).read(np.array([3]))[0, 0, 0] == 11


def test_an_old_file_takes_box_and_pixel_size_from_its_stack(project: Path) -> None:
    Path("old.star").write_text(
        "data_\nloop_\n_rlnImageName\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnDefocusU\n"
        "_rlnOriginX\n000002@stacks/a.mrcs 300 2.7 0.1 10000 2\n"
    )
    particles = read_particles("old.star")
    assert (particles.box_size, particles.pixel_size) == (BOX, 1.5)
    assert particles.origin_x_angst.tolist() == [3.0]
    assert particles.defocus_v.tolist() == [10000.0]
    assert to_star(particles)["optics"].get_integer("rlnImageSize") == BOX
    assert ParticleImages(particles).read(np.array([0])).max() == 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data_particles", "data_particle", "particles.star: no block data_particles; its blocks: data_optics"),
        ("_rlnImageName", "_rlnOther", "particles.star: data_particles: no column rlnImageName, which names the image"),
        ("10002.000000", "nan", "particles.star: data_particles, row 3, column rlnDefocusU: expected a finite number, "
         "found 'nan'"),
        ("_rlnImagePixelSize", "_rlnSize", "particles.star: data_optics: no column rlnImagePixelSize"),
        ("opticsGroup4 4", "opticsGroup4 5", "particles.star: data_particles, row 2, column rlnOpticsGroup: group 4 is "
         "missing from data_optics, which has 1, 5"),
        ("opticsGroup4 4", "opticsGroup4 1", "particles.star: data_optics, column rlnOpticsGroup: a group number"),
        ("200.000000", "200000.0", "particles.star: data_optics, group 4, column rlnVoltage: expected 1 to 10000"),
        ("0.070000", "7", "particles.star: data_optics, group 4, column rlnAmplitudeContrast: expected 0 to 1"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(project: Path, old: str, new: str, message: str) -> None:
    edit(old, new)
    with pytest.raises(InputError) as error:
        read_particles("particles.star")
    assert str(error.value).startswith(message)


def test_a_file_without_particles_is_refused(project: Path) -> None:
    star.write("none.star", to_star(make().subset(np.zeros(6, dtype=bool))))
    with pytest.raises(InputError, match=r"none\.star: data_particles: expected particles, found none"):
        read_particles("none.star")


# Images


def test_images_come_in_the_order_asked_for(project: Path) -> None:
    images = ParticleImages(read_particles("particles.star"))
    assert len(images) == 6
    order = np.array([5, 0, 3, 3, 4, 1, 2])
    found = images.read(order)
    assert found.dtype == np.float32
    assert found.shape == (7, BOX, BOX)
    np.testing.assert_array_equal(found[:, 0, 0], order // 2 * 10 + order % 2)


@pytest.mark.parametrize("size", [1, 2, 4, 6, 100])
def test_batches_cover_the_particles_once_in_order(project: Path, size: int) -> None:
    images = ParticleImages(read_particles("particles.star"))
    order = np.array([4, 2, 0, 1, 3, 5])
    batches = list(images.batches(order, size))
    assert [len(part) for part, _ in batches] == [min(size, 6 - start) for start in range(0, 6, size)]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in batches]), order)
    np.testing.assert_array_equal(np.concatenate([data for _, data in batches]), images.read(order))
    assert list(images.batches(order[:0], size)) == []


def test_a_loop_over_batches_may_be_left(project: Path) -> None:
    images = ParticleImages(read_particles("particles.star"))
    for part, _ in images.batches(np.arange(6), 2):
        assert part.tolist() == [0, 1]
        break


def replace_stack(images: np.ndarray) -> None:
    mrc.write_stack("stacks/b.mrcs", images, 1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: os.remove("stacks/b.mrcs"),
         "stacks/b.mrcs: no such image stack (particles.star: data_particles, row 2)"),
        (lambda: os.truncate("stacks/b.mrcs", 0), "stacks/b.mrcs: expected a map or stack, found an empty file"),
        (lambda: os.truncate("stacks/b.mrcs", 1100),
         "stacks/b.mrcs: truncated: header promises 3 x 8 x 8 float16 (384 bytes of data), file has 76"),
        (lambda: replace_stack(np.zeros((3, 6, 6))),
         "stacks/b.mrcs: expected images of 8 x 8 pixels, as data_optics says, found 6 x 6 (particles.star: "
         "data_particles, row 2)"),
        (lambda: replace_stack(np.zeros((3, 8, 6))), "stacks/b.mrcs: expected images of 8 x 8 pixels"),
        (lambda: replace_stack(np.zeros((2, 8, 8))),
         "particles.star: data_particles, row 6, column rlnImageName: image 3 of stacks/b.mrcs, which holds 2"),
        (lambda: edit("000002@stacks/b", "0@stacks/b"), "particles.star: data_particles, row 4, column rlnImageName: "
         "expected NUMBER@STACK with a number from 1, found '0@stacks/b.mrcs'"),
        (lambda: edit("000002@stacks/b", "x@stacks/b"), "particles.star: data_particles, row 4, column rlnImageName"),
        (lambda: edit("1.500000 8 2 0 mtf", "1.500000 10 2 0 mtf"),
         "particles.star: data_optics: expected one box size for all particles, found 8 pixels (group 1) and 10 pixels "
         "(group 4)"),
        (lambda: edit("1.500000 8 2 0 mtf", "2.500000 8 2 0 mtf"),
         "particles.star: data_optics: expected one pixel size for all particles, found 1.5 A (group 1) and 2.5 A "
         "(group 4)"),
    ],
)  # fmt: skip
def test_stacks_that_do_not_fit_are_refused_when_opened(project: Path, change: object, message: str) -> None:
    change()  # type: ignore[operator]
    with pytest.raises(InputError) as error:
        ParticleImages(read_particles("particles.star"))
    assert str(error.value).startswith(message)


def test_an_odd_box_is_refused(project: Path) -> None:
    group = OpticsGroup(1, "g", 1.5, 7, 300.0, 2.7, 0.1)
    mrc.write_stack("odd.mrcs", np.zeros((1, 7, 7)), 1.5)
    with pytest.raises(InputError, match=r"odd\.mrcs: expected an even box, found 7 pixels"):
        ParticleImages(Particles.create([group], [0], image_name="000001@odd.mrcs"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_is_named(project: Path, value: float) -> None:
    with mrcfile.open("stacks/b.mrcs", mode="r+") as file:
        file.data[1, 2, 3] = value
    images = ParticleImages(read_particles("particles.star"))
    images.read(np.array([0, 1, 2]))
    with pytest.raises(InputError) as error:
        list(images.batches(np.arange(6), 2))
    assert str(error.value) == (
        "stacks/b.mrcs: image 2: expected finite pixels, found NaN or infinity (particles.star: data_particles, row 4)"
    )


def test_image_names() -> None:
    assert split_image_name("000012@a@b.mrcs") == (11, "a@b.mrcs")
    assert split_image_name("single.mrc") == (0, "single.mrc")


# Columns


def test_a_subset_is_independent() -> None:
    particles = make()
    part = particles.subset(np.array([True, False, True, False, False, False]))
    part.rot[:] = 99
    assert particles.rot.tolist() == [0, 1, 2, 3, 4, 5]
    assert part.image_name.tolist() == ["000001@stacks/a.mrcs", "000002@stacks/a.mrcs"]


def test_half_sets_are_equal_random_and_reproducible() -> None:
    first, second, other = make(1001), make(1001), make(1001)
    first.assign_half_sets(1)
    second.assign_half_sets(1)
    other.assign_half_sets(2)
    np.testing.assert_array_equal(first.half_set, second.half_set)
    assert np.any(first.half_set != other.half_set)
    assert sorted(np.unique(first.half_set, return_counts=True)[1]) == [500, 501]
    runs = np.count_nonzero(np.diff(first.half_set))
    assert 500 - 5 * 16 < runs < 500 + 5 * 16  # five standard deviations of the number of changes by chance
    kept = first.half_set.copy()
    first.assign_half_sets(3)
    np.testing.assert_array_equal(first.half_set, kept)


@pytest.mark.parametrize("bad", [0, 3])
def test_an_incomplete_assignment_is_refused(bad: int) -> None:
    particles = make()
    particles.half_set[:] = [1, 2, 1, 2, bad, 1]
    with pytest.raises(InputError, match=rf"row 5, column rlnRandomSubset: expected 1 or 2, found {bad}"):
        particles.assign_half_sets(1)


def test_groups_are_micrographs_unless_named() -> None:
    particles = make()
    names, index = particles.groups()
    assert names == ["mic0.mrc", "mic1.mrc", "mic2.mrc"]
    assert index.tolist() == [0, 1, 2, 0, 1, 2]
    particles.group_name[:] = ["g2", "g1", "g2", "g2", "g2", "g2"]
    assert particles.groups()[0] == ["g2", "g1"]


def test_ctf_coefficients_follow_each_particles_optics_group() -> None:
    particles = make()
    particles.phase_shift[:] = 30
    found = particles.ctf_coefficients()
    for i, group in enumerate(GROUPS):
        one = particles.optics_index == i
        expected = ctf.coefficients(
            particles.defocus_u[one], particles.defocus_v[one], particles.defocus_angle[one], group.voltage, group.cs,
            group.q0, 30.0, 0.0, 1.0, 1.5, BOX,
        )  # fmt: skip
        np.testing.assert_array_equal(found[one], expected)


def test_missing_ctf_parameters_are_named(project: Path) -> None:
    edit("_rlnDefocusU", "_rlnOther")
    particles = read_particles("particles.star")
    assert not particles.has_ctf
    with pytest.raises(InputError, match=r"particles\.star: no column rlnDefocusU, which the CTF correction needs"):
        particles.ctf_coefficients()
    edit("_rlnOther", "_rlnDefocusU")
    edit("_rlnSphericalAberration", "_rlnOther")
    with pytest.raises(InputError, match=r"no column rlnSphericalAberration, which the CTF correction needs"):
        read_particles("particles.star").ctf_coefficients()


def test_images_multiplied_by_their_ctf_are_refused() -> None:
    group = OpticsGroup(3, "g", 1.5, BOX, 300.0, 2.7, 0.1, ctf_premultiplied=True)
    particles = Particles.create([group], [0], defocus_u=1e4, defocus_v=1e4)
    with pytest.raises(InputError, match="data_optics, group 3: images multiplied by their CTF"):
        particles.ctf_coefficients()


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rot: shape \(2,\), expected \(3,\)"):
        Particles.create(GROUPS, [0, 0, 1], rot=[1.0, 2.0])
    with pytest.raises(ValueError, match="unknown properties of particles: rott"):
        Particles.create(GROUPS, [0], rott=[1.0])


def test_real_particles(shared_data: Path) -> None:
    particles = read_particles(shared_data / "bgal_particles" / "particles.star")
    images = ParticleImages(particles)
    assert (len(particles), images.box_size, images.pixel_size) == (1157, 64, 3.54)
    assert len(particles.groups()[0]) == 5
    chosen = np.arange(0, 1157, 97)
    found = images.read(chosen)
    for i, image in zip(chosen, found, strict=True):
        number, name = split_image_name(particles.image_name[i])
        np.testing.assert_array_equal(image, mrcfile.read(name)[number].astype(np.float32))
    assert np.abs(particles.ctf_coefficients()[:, 0] - (particles.defocus_u + particles.defocus_v) / 2).max() < 1e-2


def test_rows_of_one_image_come_into_one_half() -> None:
    particles = make(40)
    particles.image_name = np.array([f"{i // 2 + 1:06d}@stack.mrcs" for i in range(40)], dtype=object)
    particles.assign_half_sets(1)
    halves = particles.half_set.reshape(20, 2)
    assert (halves[:, 0] == halves[:, 1]).all()
    assert np.bincount(halves[:, 0])[1:].tolist() == [10, 10]

"""`spa extract`: its stacks and tables, where coordinates come from, what it warns of and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from spa.cli.main import run
from spa.io import extraction_plots, mrc, star
from spa.io.micrographs import unique_stems
from spa.io.particle_io import ParticleImages, read_particles
from spa.io.star import Block, StarFile

PIXEL, SHAPE = 1.5, (200, 240)
OPTICS = {
    "rlnOpticsGroupName": ["first"],
    "rlnOpticsGroup": [1],
    "rlnMicrographPixelSize": [PIXEL],
    "rlnMicrographOriginalPixelSize": [PIXEL / 2],
    "rlnVoltage": [300.0],
    "rlnSphericalAberration": [2.7],
    "rlnAmplitudeContrast": [0.1],
}
CTF = {
    "rlnDefocusU": [9000.0, 12000.0],
    "rlnDefocusV": [8800.0, 11500.0],
    "rlnDefocusAngle": [30.0, 40.0],
    "rlnCtfMaxResolution": [4.0, 5.0],
}
CENTRES = np.array([(60.0, 50.0), (130.7, 90.2), (5.0, 190.0), (200.0, 100.0)])


def micrograph(seed: int, sign: float = -1.0) -> np.ndarray:
    """Noise with a disc of 12 pixels and a fringe around it at each of CENTRES."""
    image = np.random.default_rng(seed).standard_normal(SHAPE) + 20
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for cx, cy in np.trunc(CENTRES):
        radius = np.hypot(x - cx, y - cy)
        image += sign * (1.5 * (radius < 12) - 1.0 * ((radius >= 12) & (radius < 16)))
    return image.astype(np.float32)


def write_micrographs(**columns: list) -> list[str]:
    names = [f"MotionCorr/job002/Movies/{name}.mrc" for name in ("a", "b")]
    for seed, name in enumerate(names):
        mrc.write_stack(name, micrograph(seed), PIXEL)
    rows = {"rlnMicrographName": names, "rlnOpticsGroup": [1, 1], **columns}
    star.write("mics.star", StarFile([Block.table("optics", OPTICS), Block.table("micrographs", rows)]))
    return names


def write_picks(name: str, centres: np.ndarray, **columns: list) -> str:
    x, y = np.asarray(centres, dtype=float).reshape(-1, 2).T
    block = Block.table("", {"rlnCoordinateX": x, "rlnCoordinateY": y, **columns})
    star.write(name, StarFile([block]))
    return name


def write_list(names: list[str], files: list[str]) -> None:
    rows = {"rlnMicrographName": names, "rlnMicrographCoordinates": files}
    star.write("coords.star", StarFile([Block.table("coordinate_files", rows)]))


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picked() -> list[str]:
    """Two micrographs with the same picks, listed."""
    names = write_micrographs(**CTF, rlnAccumMotionTotal=[12.5, 13.5], rlnCtfImage=["a.ctf:mrc", "b.ctf:mrc"])
    fom = {"rlnAutopickFigureOfMerit": [0.1, 0.2, 0.3, 0.4]}
    write_list(names, [write_picks(f"picks/{Path(name).stem}_pick.star", CENTRES, **fom) for name in names])
    return names


def extract(*arguments: object, source: tuple[str, ...] = ("--coord_list", "coords.star"), size: int = 48) -> int:
    common = ["--i", "mics.star", "--part_dir", "Extract/job005", "--j", "1", "--random_seed", "1"]
    return run(["extract", *common, "--extract_size", str(size), *source, *map(str, arguments)])


def particles() -> StarFile:
    return star.read("Extract/job005/particles.star")


def test_particles_take_over_the_ctf_and_their_stacks_are_read_by_refinement(picked, capsys):
    assert extract("--norm", "--bg_radius", 18, "--invert_contrast") == 0
    found = particles()
    table, optics = found["particles"], found["optics"]
    assert found.names == ["optics", "particles"]
    assert len(table) == 8
    assert table.text("rlnImageName")[5] == "000002@Extract/job005/Movies/b.mrcs"
    assert table.text("rlnMicrographName")[5] == picked[1]
    assert table.floats("rlnDefocusU").tolist() == [9000.0] * 4 + [12000.0] * 4
    assert table.floats("rlnCtfBfactor").tolist() == [0.0] * 8
    assert table.floats("rlnAccumMotionTotal")[7] == 13.5
    assert table.floats("rlnAutopickFigureOfMerit").tolist() == [0.1, 0.2, 0.3, 0.4] * 2
    assert table.floats("rlnCoordinateX")[1] == 130.7
    assert "rlnCtfImage" not in table
    assert optics.get_float("rlnImagePixelSize") == PIXEL
    assert optics.get_integer("rlnImageSize") == 48
    assert optics.get_integer("rlnImageDimensionality") == 2
    read = read_particles("Extract/job005/particles.star")
    assert read.has_ctf
    images = ParticleImages(read).read(np.arange(8))
    outside = np.hypot(*(np.mgrid[:48, :48] - 24)) > 18
    assert np.abs(images[:, outside].mean(axis=1)).max() < 1e-4
    assert np.abs(images[:, outside].std(axis=1) - 1).max() < 1e-4
    assert (images[:, 14:34, 14:34].mean(axis=(1, 2))[[0, 1, 3]] > 0.5).all()
    assert Path("Extract/job005/particles.png").stat().st_size > 20000
    told = capsys.readouterr()
    assert "8 particles of 2 micrographs (4 each, median) in Extract/job005/particles.star" in told.out
    assert "darker" not in told.err


def test_the_picture_keeps_pixel_sizes_apart(picked):
    found = star.read("mics.star")
    optics = {name: [*values, *values] for name, values in OPTICS.items()}
    optics |= {"rlnOpticsGroup": [1, 2], "rlnMicrographPixelSize": [PIXEL, 2 * PIXEL]}
    found.put(Block.table("optics", optics))
    found["micrographs"].set("rlnOpticsGroup", [1, 2])
    star.write("mics.star", found)
    write_picks("picks/b_pick.star", CENTRES[:3])
    assert extract("--norm", "--bg_radius", 18, "--invert_contrast") == 0
    sample = extraction_plots.read_sample(particles()["particles"], particles()["optics"])
    assert sample.sizes == (PIXEL, 2 * PIXEL)
    assert sample.pixel_size == PIXEL
    assert len(sample.images) == 4
    assert {name: size for name, (_, size) in sample.shown.items()} == {picked[0]: PIXEL, picked[1]: 2 * PIXEL}
    texts = [text.get_text() for text in extraction_plots.gallery(sample, 18).findobj(Text)]
    assert "a.mrc, pixels of 1.5 Å" in texts
    assert "b.mrc, pixels of 3 Å" in texts
    assert "7 particles, box 48 px of 1.5 to 3 Å\nbelow: those of 1.5 Å" in texts


@pytest.mark.filterwarnings("error")
def test_a_coordinate_beyond_all_bounds_is_left_out(picked, capsys):
    write_list(picked, [write_picks("far.star", np.vstack([CENTRES, (1e30, 50)]))] * 2)
    assert extract("--norm") == 0
    assert len(particles()["particles"]) == 8
    assert "left out 2 coordinates whose box lies outside" in capsys.readouterr().err


def test_raw_windows_are_the_pixels_of_the_micrograph(picked, capsys):
    assert extract() == 0
    images, pixel_size = mrc.read("Extract/job005/Movies/a.mrcs")
    assert pixel_size == pytest.approx(PIXEL)
    assert np.array_equal(images[1], micrograph(0)[66:114, 106:154])
    told = capsys.readouterr().err
    assert "without --norm the particles are not normalised" in told
    assert "darker than what surrounds them" in told
    assert "give --invert_contrast" in told


def test_scale_and_float16(picked):
    assert extract("--scale", 24, "--norm", "--float16", "--part_star", "deep/set.star") == 0
    optics = star.read("deep/set.star")["optics"]
    assert optics.get_float("rlnImagePixelSize") == 2 * PIXEL
    assert optics.get_integer("rlnImageSize") == 24
    info = mrc.info("Extract/job005/Movies/b.mrcs")
    assert info.shape == (4, 24, 24)
    assert info.mode == 12
    assert info.pixel_size == pytest.approx(2 * PIXEL)


def test_the_box_that_would_hold_all_signal_is_named(picked, capsys):
    assert extract("--norm", "--bg_radius", 18) == 0
    warning = capsys.readouterr().err
    # 11750 A * 0.0196875 A / 3 A = 77.1 A beyond 27 A: 104.1 A, 2 * 70 pixels
    assert "the box of 72 Å does not hold all signal: at 1.18 µm of defocus" in warning
    assert "carries 3.00 Å (Nyquist) 77 Å beyond the circle of 27 Å" in warning
    assert "--extract_size 140 would hold all" in warning
    assert extract("--norm", "--bg_radius", 18, size=140) == 0
    assert "hold" not in capsys.readouterr().err


def test_figure_of_merit_and_empty_micrographs(picked, capsys):
    Path("picks/b_pick.star").write_bytes(b"")
    assert extract("--minimum_pick_fom", 0.3) == 0
    assert particles()["particles"].floats("rlnAutopickFigureOfMerit").tolist() == [0.3, 0.4]
    assert not Path("Extract/job005/Movies/b.mrcs").exists()
    assert "2 particles of 2 micrographs, 1 without any" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["no rows", "no bytes", "fom"])
def test_nothing_picked_is_a_table_without_rows_and_a_sentence(picked, how, capsys):
    for name in ("a", "b"):
        if how == "no rows":
            write_picks(f"picks/{name}_pick.star", np.zeros((0, 2)))
        elif how == "no bytes":
            Path(f"picks/{name}_pick.star").write_bytes(b"")
    arguments = ("--minimum_pick_fom", 5) if how == "fom" else ()
    assert extract(*arguments) == 0
    assert len(particles()["particles"]) == 0
    assert {"rlnImageName", "rlnDefocusU"} <= set(particles()["particles"].columns)
    assert particles()["optics"].get_integer("rlnImageSize") == 48
    assert "no particles: the files of coordinates hold none that are wanted" in capsys.readouterr().err
    assert run(["select", "--i", "Extract/job005/particles.star", "--o", "x.star", "--split", "--nr_split", "2"]) == 0


def test_coordinates_beside_micrographs_in_a_folder_and_of_other_programs(picked):
    write_picks("MotionCorr/job002/Movies/a_pick.star", CENTRES)
    write_picks("Picks/job003/Movies/b_pick.star", CENTRES[:3])
    assert extract(source=("--coord_suffix", "_pick.star")) == 0
    assert len(particles()["particles"]) == 4
    Path("Picks/job003/Movies/a.box").write_text("36 26 48 48\n")
    Path("Extract/job005/extracted_micrographs.star").unlink()
    assert extract(source=("--coord_dir", "Picks/job003", "--coord_suffix", ".box")) == 0
    images, _ = mrc.read("Extract/job005/Movies/a.mrcs")
    assert np.array_equal(images[0], micrograph(0)[26:74, 36:84])
    Path("Extract/job005/extracted_micrographs.star").unlink()
    assert extract(source=("--coord_dir", "Picks/job003/", "--coord_suffix", "_pick.star")) == 0
    assert len(particles()["particles"]) == 3


def test_recentring_needs_shifts(picked, capsys):
    assert extract() == 0
    Path("Extract/job005/particles.star").rename("again.star")
    assert extract("--recenter", source=("--reextract_data_star", "again.star")) == 1
    assert "no column rlnOriginXAngst, which --recenter needs" in capsys.readouterr().err


def test_refined_particles_keep_what_is_known_and_their_boxes_move(picked):
    assert extract("--scale", 24) == 0
    found = particles()
    table = found["particles"]
    origins = np.array([[4.6, -3.2], [0.4, 0.7], [-7.4, 1.6], [2.2, 10.0]] * 2)
    for axis, column in enumerate(("rlnOriginXAngst", "rlnOriginYAngst")):
        table.set(column, origins[:, axis])
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"):
        table.set(column, np.arange(8) * 11.0)
    table.set("rlnRandomSubset", [1, 2] * 4)
    table.set("rlnDefocusU", table.floats("rlnDefocusU") + 50)
    found["optics"].set("rlnBeamTiltX", [0.3])
    star.write("refined.star", found)
    again = ("--reextract_data_star", "refined.star")
    assert extract("--recenter", source=again) == 0
    moved = particles()["particles"]
    assert moved.floats("rlnCoordinateX")[:4].tolist() == pytest.approx([57.0, 130.7, 10.0, 199.0])
    assert moved.floats("rlnOriginXAngst")[:4].tolist() == pytest.approx([0.1, 0.4, 0.1, 0.7])
    before = table.floats("rlnCoordinateY") * PIXEL - origins[:, 1]
    after = moved.floats("rlnCoordinateY") * PIXEL - moved.floats("rlnOriginYAngst")
    assert np.allclose(before, after)
    assert np.array_equal(mrc.read("Extract/job005/Movies/a.mrcs")[0][1], micrograph(0)[66:114, 106:154])
    for column in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnRandomSubset", "rlnDefocusU"):
        assert moved.text(column) == table.text(column)
    optics = particles()["optics"]
    assert optics.get_float("rlnImagePixelSize") == PIXEL
    assert optics.get_float("rlnBeamTiltX") == 0.3
    assert extract(source=again) == 0
    assert particles()["particles"].floats("rlnOriginYAngst").tolist() == pytest.approx(origins[:, 1].tolist())
    assert extract("--reset_offsets", "--keep_ctfs_micrographs", source=again) == 0
    assert not particles()["particles"].floats("rlnOriginXAngst").any()
    assert particles()["particles"].floats("rlnDefocusU")[0] == 9000


def test_finished_micrographs_are_kept_until_their_coordinates_change(picked, capsys):
    assert extract() == 0
    stamp = Path("Extract/job005/Movies/a.mrcs").stat().st_mtime_ns
    write_picks("picks/b_pick.star", CENTRES[:2], rlnAutopickFigureOfMerit=[1.0, 2.0])
    assert extract("--only_do_unfinished") == 0
    assert "1 of 2 micrographs are finished" in capsys.readouterr().out
    assert Path("Extract/job005/Movies/a.mrcs").stat().st_mtime_ns == stamp
    assert len(particles()["particles"]) == 6


def test_unknown_micrographs_and_missing_coordinates_are_named(picked, capsys):
    write_list([picked[0], "Movies/other.mrc"], ["picks/a_pick.star", "picks/b_pick.star"])
    assert extract() == 0
    told = capsys.readouterr().err
    assert "coords.star: data_coordinate_files, row 2, column rlnMicrographName: 'Movies/other.mrc' is none" in told
    assert f"no coordinates of 1 of 2 micrographs in coords.star, as of {picked[1]}" in told


def test_particles_outside_are_left_out_if_few_and_refused_if_many(picked, capsys):
    many = np.concatenate([np.tile(CENTRES, (5, 1)), [(900.0, 20.0)]])
    write_picks("picks/a_pick.star", many)
    write_picks("picks/b_pick.star", np.tile(CENTRES * 2, (2, 1)))
    assert extract() == 0
    told = capsys.readouterr().err
    assert "left out 1 coordinate whose box lies outside their micrograph, the first in " + picked[0] in told
    assert "picks/b_pick.star: data_, row 3, column rlnCoordinateX: expected a box in " in told
    assert "found (10, 380) and 4 of 8 like it outside" in told  # the second still reaches it with its first columns
    assert len(particles()["particles"]) == 20


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--extract_size", 47), 2, "--extract_size 47: expected an even number"),
        (("--scale", 23), 2, "--scale 23: expected an even number"),
        (("--scale", 64), 2, "--scale 64: expected at most --extract_size 48"),
        (("--extract_size", 220), 1, "--extract_size 220: larger than its 240 x 200 pixels"),
        (("--norm", "--bg_radius", 25), 2, "--bg_radius 25: expected at most 24"),
        (("--scale", 24, "--norm", "--bg_radius", 18), 2, "--bg_radius 18: expected at most 12"),
        (("--white_dust", 5), 2, "expected with --norm"),
        (("--recenter",), 2, "expected with --reextract_data_star"),
        (("--coord_suffix", "_pick.star"), 2, "expected one of --coord_list"),
        (("--coord_list", "absent.star"), 1, "absent.star: cannot be read"),
        (("--coord_list", "mics.star"), 1, "mics.star: expected a table with rlnMicrographName and"),
        (("--minimum_pick_fom", "high"), 2, "--minimum_pick_fom high: expected a number"),
    ],
)
def test_wrong_options_are_told_in_a_line(picked, arguments, status, words, capsys):
    assert extract(*arguments) == status
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "Traceback" not in told


def test_wrong_coordinates_are_told_in_a_line(picked, capsys):
    write_list(["Movies/x.mrc", "Movies/y.mrc"], ["picks/a_pick.star"] * 2)
    assert extract() == 1
    told = capsys.readouterr().err
    assert "no coordinates of any of the 2 micrographs in mics.star; the first: coords.star: data_" in told
    write_list([picked[0], picked[0]], ["picks/a_pick.star"] * 2)
    assert extract() == 1
    assert "row 2, column rlnMicrographName: expected each micrograph once" in capsys.readouterr().err
    write_list(picked, ["picks/gone.star", "picks/bad.star"])
    Path("picks/bad.star").write_text("data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n10 20\n10 nan\n")
    assert extract() == 1
    told = capsys.readouterr().err
    assert "picks/gone.star: expected a file of coordinates, found nothing there" in told
    assert "picks/bad.star: data_, row 2, column rlnCoordinateY: expected a finite number, found 'nan'" in told
    for name in ("a", "b"):
        write_picks(f"picks/{name}_pick.star", CENTRES)
    write_list(picked, ["picks/a_pick.star", "picks/b_pick.star"])
    assert extract("--minimum_pick_fom", 0.1) == 1
    assert "no column rlnAutopickFigureOfMerit, which --minimum_pick_fom needs" in capsys.readouterr().err


def test_columns_that_only_some_coordinates_have_are_left_out(picked, capsys):
    write_picks("picks/b_pick.star", CENTRES)
    assert extract() == 0
    assert "rlnAutopickFigureOfMerit" not in particles()["particles"]
    assert "only some files of coordinates have: rlnAutopickFigureOfMerit" in capsys.readouterr().err


def test_damaged_and_flat_micrographs(picked, capsys):
    spoilt = micrograph(1)
    spoilt[3, 4] = np.nan
    mrc.write_stack(picked[1], spoilt, PIXEL)
    mrc.write_stack(picked[0], np.full(SHAPE, 7.0, np.float32), PIXEL)
    assert extract("--norm") == 0
    told = capsys.readouterr().err
    assert f"{picked[1]}: expected finite pixels, found 1 that are not" in told
    assert f"left out 4 coordinates whose box is constant, the first in {picked[0]}" in told
    assert not Path("Extract/job005/Movies/a.mrcs").exists()
    assert not Path("Extract/job005/particles.png").exists()
    bright = micrograph(0) * 1e4
    mrc.write_stack(picked[0], bright, PIXEL)
    assert extract("--float16") == 1
    assert "--float16 needs --norm" in capsys.readouterr().err


def test_micrographs_without_ctf(capsys):
    names = write_micrographs()
    write_list(names, [write_picks(f"picks/{Path(name).stem}_pick.star", CENTRES) for name in names])
    assert extract("--norm") == 0
    assert "no column rlnDefocusU: the particles have no CTF" in capsys.readouterr().err
    assert not read_particles("Extract/job005/particles.star").has_ctf


def one_micrograph(name: str) -> None:
    write_micrographs()
    mrc.write_stack(name, micrograph(0), PIXEL)
    rows = {"rlnMicrographName": [name], "rlnOpticsGroup": [1]}
    star.write("mics.star", StarFile([Block.table("optics", OPTICS), Block.table("micrographs", rows)]))


@pytest.mark.parametrize("other", ["day2/mic.mrc", "day1/mic_second.mrc"])
def test_coordinates_of_another_micrograph_are_not_taken(other, capsys):
    one_micrograph("day1/mic.mrc")
    mrc.write_stack(other, micrograph(1), PIXEL)
    write_list([other], [write_picks("picks/other.star", CENTRES)])
    assert extract() == 1
    assert f"'{other}' is none of the micrographs" in capsys.readouterr().err
    write_picks("picks/this.star", CENTRES[:2])
    write_list(["day1/mic.mrc", other], ["picks/this.star", "picks/other.star"])
    assert extract() == 0
    assert len(particles()["particles"]) == 2
    assert "left out" in capsys.readouterr().err


def test_coordinates_whose_rows_name_another_micrograph_are_refused(capsys):
    one_micrograph("day1/mic.mrc")
    write_list(["day1/mic.mrc"], [write_picks("picks/x.star", CENTRES, rlnMicrographName=["day1/b.mrc"] * 4)])
    assert extract() == 1
    assert "picks/x.star: expected coordinates of day1/mic.mrc, found those of day1/b.mrc" in capsys.readouterr().err


def test_one_file_is_not_for_two_micrographs(capsys):
    names = ["MotionCorr/job002/M/a.mrc", "MotionCorr/job003/M/a.mrc"]
    write_micrographs()
    for name in names:
        mrc.write_stack(name, micrograph(0), PIXEL)
    rows = {"rlnMicrographName": names, "rlnOpticsGroup": [1, 1]}
    star.write("mics.star", StarFile([Block.table("optics", OPTICS), Block.table("micrographs", rows)]))
    write_picks("ap/M/a_pick.star", CENTRES)
    source = ("--coord_dir", "ap", "--coord_suffix", "_pick.star")
    assert extract(source=source) == 1
    assert f"ap/M/a_pick.star: found for {names[0]} and for {names[1]}" in capsys.readouterr().err
    for stem, n in zip(unique_stems(names), (2, 3), strict=True):
        write_picks(f"ap/{stem}_pick.star", CENTRES[:n])
    assert extract(source=source) == 0
    assert particles()["particles"].text("rlnMicrographName") == [names[0]] * 2 + [names[1]] * 3


def test_particles_move_to_micrographs_of_another_pixel_size(picked, capsys):
    assert extract() == 0
    found = particles()
    found["optics"].set("rlnMicrographPixelSize", [2 * PIXEL])
    for axis in "XY":
        found["particles"].set(f"rlnCoordinate{axis}", found["particles"].floats(f"rlnCoordinate{axis}") / 2)
    star.write("refined.star", found)
    assert extract(source=("--reextract_data_star", "refined.star")) == 0
    assert "coordinates scaled to the pixels of mics.star: 3 Å to 1.5 Å" in capsys.readouterr().out
    assert particles()["particles"].floats("rlnCoordinateX")[:4].tolist() == pytest.approx(CENTRES[:, 0].tolist())
    assert particles()["optics"].get_float("rlnMicrographPixelSize") == PIXEL


def test_huge_pixels_are_refused_in_a_line(picked, capsys):
    mrc.write_stack(picked[0], micrograph(0) * 1e25, PIXEL)
    assert extract("--norm") == 0
    told = capsys.readouterr().err
    assert "expected pixels of at most 1e+15" in told
    assert "RuntimeWarning" not in told
    assert len(particles()["particles"]) == 4


def test_outputs_do_not_replace_inputs_and_ctf_is_not_dropped(picked, capsys):
    for name in ("mics.star", "coords.star", "Extract/job005/extracted_micrographs.star", "picks/a_pick.star"):
        assert extract("--part_star", name) == 1
        assert f"--part_star {name}: would replace" in capsys.readouterr().err
    assert extract() == 0
    star.write("refined.star", particles())
    write_micrographs()
    again = ("--reextract_data_star", "refined.star")
    capsys.readouterr()
    assert extract(source=again) == 0
    assert "have no CTF" not in capsys.readouterr().err
    assert extract("--keep_ctfs_micrographs", source=again) == 1
    assert "no column rlnDefocusU, which --keep_ctfs_micrographs needs" in capsys.readouterr().err


def test_an_empty_list_is_a_table_without_rows_and_a_sentence(picked, capsys):
    write_list([], [])
    assert extract() == 0
    assert len(particles()["particles"]) == 0
    assert "no particles: coords.star lists no files" in capsys.readouterr().err

"""`spa pick`: its tables, files and pictures, what it says and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from spa.cli.main import run
from spa.io import mrc, pick_micrograph, star
from spa.io.coordinates import FOM
from spa.io.micrographs import read_items
from spa.io.star import Block, StarFile
from spa.jobs import pick as job

DIAMETER = "150"
TRUTH = "sim/truth_coordinates/*.star"
MAP = ("--ref", "sim/truth_map.mrc", "--ang", "30", "--lowpass", "30", "--particle_diameter", DIAMETER)
LOG = ("--LoG", "--LoG_diam_min", "130", "--LoG_diam_max", "160")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """Two micrographs of the built-in phantom."""
    folder = tmp_path_factory.mktemp("simulated")
    command = ["simulate", "--kind", "micrographs", "--o", str(folder / "sim"), "--angpix", "4", "--quiet", "--j", "2"]
    command += ["--nr_micrographs", "2", "--nr_particles", "70", "--micrograph_size", "640", "--seed", "3"]
    assert run([*command, "--defocus_min", "12000", "--defocus_max", "22000", "--snr", "0.3"]) == 0
    return folder


@pytest.fixture
def project(simulated, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with the simulated micrographs under sim/."""
    shutil.copytree(simulated / "sim", tmp_path / "sim")
    for name in ("micrographs", "truth_ctf"):
        found = star.read(tmp_path / f"sim/{name}.star")
        table = found["micrographs"]
        table.set("rlnMicrographName", [f"sim/micrographs/{Path(n).name}" for n in table.text("rlnMicrographName")])
        star.write(tmp_path / f"sim/{name}.star", found)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pick(*arguments: object, source: str = "sim/truth_ctf.star", folder: str = "Pick/job004") -> int:
    common = ["--i", source, "--odir", folder, "--j", "1", "--random_seed", "1"]
    return run(["pick", *common, *map(str, arguments)])


def coordinates(number: int, folder: str = "Pick/job004", name: str = "autopick") -> Block:
    return star.read(f"{folder}/sim/micrographs/mic{number:05d}_{name}.star")[""]


def evaluated(folder: str = "Pick/job004") -> dict[str, float]:
    general = star.read(f"{folder}/autopick_evaluation.star")["general"]
    return {name: general.get_float(name) for name in general.columns}


def blobs_on(number: int, where: list[tuple[int, int]], height: float) -> None:
    """Put bright or dark contamination, as wide as a particle, on a micrograph."""
    name = f"sim/micrographs/mic{number:05d}.mrc"
    image = mrc.read(name)[0][0]
    rows, columns = np.indices(image.shape)
    for x, y in where:
        image += height * image.std() * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 10.0**2))
    mrc.write_volume(name, image, 4.0)


@pytest.mark.parametrize(("arguments", "least"), [(MAP, 0.95), (LOG, 0.85)])
def test_particles_are_picked_and_files_written(project, arguments, least, capsys):
    assert pick(*arguments, "--evaluate", TRUTH) == 0
    found = evaluated()
    assert found["spaF1"] >= least
    assert found["spaMedianOffset"] < (4 if arguments is MAP else 15)
    listed = star.read("Pick/job004/autopick.star")["coordinate_files"]
    assert listed.columns == ["rlnMicrographName", "rlnMicrographCoordinates"]
    assert listed.text("rlnMicrographCoordinates")[0] == "Pick/job004/sim/micrographs/mic00001_autopick.star"
    table = coordinates(1)
    for column in ("rlnCoordinateX", "rlnCoordinateY", FOM, "rlnClassNumber", "rlnAnglePsi"):
        assert len(table.floats(column)) == len(table) > 20
    assert (np.diff(table.floats(FOM)) <= 0).all()
    assert table.floats("rlnCoordinateX").min() >= 0
    counts = star.read("Pick/job004/micrographs_picked.star")["micrographs"].integers("spaNrPicks")
    assert counts[0] == len(table)
    for name in ("autopick.png", "autopick_evaluation.png", "sim/micrographs/mic00002_autopick.png"):
        assert Path(f"Pick/job004/{name}").read_bytes().startswith(b"\x89PNG")
    assert f"{counts.sum()} picks" in capsys.readouterr().out
    assert Path("Pick/job004/coords_suffix_autopick.star").read_text() == "sim/truth_ctf.star\n"


def test_precision_falls_as_the_threshold_falls(project):
    assert pick(*MAP, "--threshold", "1.5", "--evaluate", TRUTH) == 0
    curve = star.read("Pick/job004/autopick_evaluation.star")["curve"]
    threshold, precision = curve.floats("spaPickThreshold"), curve.floats("spaPrecision")
    levels = [precision[np.searchsorted(threshold, q)] for q in np.linspace(threshold[0], threshold[-1], 6)[:-1]]
    assert (np.diff(levels) >= -0.02).all()
    assert levels[0] < 0.8 < levels[-1]
    assert evaluated()["spaBestF1"] > 0.95


@pytest.mark.parametrize("height", [8.0, -12.0])
@pytest.mark.parametrize("arguments", [MAP, LOG])
def test_nothing_is_picked_on_contamination(project, arguments, height):
    where = [(100, 120), (420, 300), (250, 560)]
    blobs_on(1, where, height)
    assert pick(*arguments) == 0
    table = coordinates(1)
    centres = np.stack([table.floats("rlnCoordinateX"), table.floats("rlnCoordinateY")], axis=1)
    distance = np.linalg.norm(centres[:, None] - np.array(where), axis=2).min(axis=1)
    assert distance.min() > 12
    assert len(centres) > 15
    masked = star.read("Pick/job004/micrographs_picked.star")["micrographs"].floats("spaMaskedArea")
    assert masked[0] > 0
    assert masked[1] == 0


@pytest.mark.parametrize("n", [0, 1, 40])
def test_a_large_micrograph_of_any_size_is_drawn(n, tmp_path):
    rng = np.random.default_rng(1)
    image = rng.standard_normal((1303, 729), dtype=np.float32)
    shown = pick_micrograph.Shown(
        image, image < 4, 5.625, rng.uniform(0, 4000, (n, 2)), rng.uniform(4, 9, n), 4.0, 150.0, 1.5
    )
    pick_micrograph.write(tmp_path / "picks.png", shown, "large_$x^{2}$.mrc")
    assert (tmp_path / "picks.png").read_bytes().startswith(b"\x89PNG")


def test_circles_are_drawn_around_the_particles_and_masked_parts_are_blue():
    rows, columns = np.ogrid[:120, :160]
    image = -np.exp(-((rows - 30.0) ** 2 + (columns - 100.0) ** 2) / 50).astype(np.float32)
    image += np.random.default_rng(1).standard_normal(image.shape, dtype=np.float32) * np.float32(0.05)
    usable = np.broadcast_to(columns > 20, image.shape)
    shown = pick_micrograph.Shown(image, usable, 4.0, np.array([[400.0, 120.0]]), np.array([7.0]), 5.0, 80.0, 1.0)
    pixels = pick_micrograph.draw(shown, "m.mrc").astype(int)
    assert pixels.shape[1] > pixels.shape[0] > 480
    colour = np.ptp(pixels[:, :, :3], axis=2) > 40
    colour[:, 660:] = False  # the bar
    circle, blue = colour & (pixels[:, :, 0] > pixels[:, :, 2] + 20), colour & (pixels[:, :, 2] > pixels[:, :, 0])
    y, x = np.nonzero(circle)
    assert np.ptp(x) == pytest.approx(80, abs=4)
    assert np.ptp(y) == pytest.approx(80, abs=4)
    middle = pixels[round(y.mean()) - 6 : round(y.mean()) + 7, round(x.mean()) - 6 : round(x.mean()) + 7, 0]
    assert middle.mean() < np.median(pixels[200:480, 300:600, 0]) - 60
    assert np.ptp(np.nonzero(blue)[1]) == pytest.approx(84, abs=2)


def test_consensus_joins_lists_of_picks(project):
    assert pick(*MAP, folder="Pick/job001") == 0
    assert pick(*LOG, folder="Pick/job002") == 0
    lists = ["--consensus", "Pick/job001/autopick.star", "--consensus", "Pick/job002/autopick.star"]
    assert pick(*lists, "--evaluate", TRUTH) == 0
    both = evaluated()
    assert both["spaPrecision"] > 0.95
    assert both["spaNrPicks"] <= len(coordinates(1, "Pick/job001")) + len(coordinates(2, "Pick/job001"))
    assert pick(*lists, "--consensus_min", "1", "--evaluate", TRUTH, folder="Pick/job005") == 0
    assert evaluated("Pick/job005")["spaNrPicks"] >= both["spaNrPicks"]


def test_two_dimensional_references_with_other_pixels_are_resampled(project, capsys):
    assert run(["project", "--i", "sim/truth_map.mrc", "--o", "views", "--nr_uniform", "12", "--random_seed", "1"]) == 0
    images, _ = mrc.read("views.mrcs")
    mrc.write_stack("coarse.mrcs", images[:, ::2, ::2][:, : images.shape[1] // 4 * 2, : images.shape[1] // 4 * 2], 8.0)
    arguments = ("--ref", "coarse.mrcs", "--ang", "20", "--particle_diameter", DIAMETER, "--evaluate", TRUTH)
    assert pick(*arguments) == 0
    assert "resampled from 8 Å pixels, those of the micrographs being 4 Å" in capsys.readouterr().out
    assert evaluated()["spaF1"] > 0.85
    assert coordinates(1).integers("rlnClassNumber").max() <= 12


def test_a_micrograph_without_particles_gives_an_empty_table_and_a_sentence(project, capsys):
    image = np.random.default_rng(1).standard_normal((640, 640), dtype=np.float32)
    mrc.write_volume("sim/micrographs/mic00001.mrc", image, 4.0)
    assert pick(*MAP, "--threshold", "30", "--evaluate", TRUTH) == 0
    assert len(coordinates(1)) == len(coordinates(2)) == 0
    told = capsys.readouterr()
    assert "no picks in 2 of 2 micrographs, as sim/micrographs/mic00001.mrc" in told.err
    assert "nothing to evaluate" in told.out
    assert star.read("Pick/job004/autopick.star")["coordinate_files"].text("rlnMicrographName")


def test_what_is_finished_is_kept(project, capsys):
    assert pick(*MAP) == 0
    before = Path("Pick/job004/sim/micrographs/mic00001_autopick.star").stat().st_mtime_ns
    assert pick(*MAP, "--only_do_unfinished") == 0
    assert "2 of 2 micrographs are finished" in capsys.readouterr().out
    assert Path("Pick/job004/sim/micrographs/mic00001_autopick.star").stat().st_mtime_ns == before


def test_a_consensus_follows_the_files_that_its_lists_name(project):
    for number in (1, 2):
        Path(f"set{number}").mkdir()
        for path in Path("sim/truth_coordinates").glob("*.star"):
            shutil.copy(path, f"set{number}/{path.name}")
        files = [f"set{number}/mic{i:05d}.star" for i in (1, 2)]
        names = [f"sim/micrographs/mic{i:05d}.mrc" for i in (1, 2)]
        columns = {"rlnMicrographName": names, "rlnMicrographCoordinates": files}
        star.write(f"list{number}.star", StarFile([Block.table("coordinate_files", columns)]))
    lists = ("--consensus", "list1.star", "--consensus", "list2.star")
    assert pick(*lists) == 0
    before = len(coordinates(1))
    shorter = star.read("set2/mic00001.star")
    shorter.put(shorter[""].rows(np.arange(5)))
    star.write("set2/mic00001.star", shorter)
    assert pick(*lists, "--only_do_unfinished") == 0
    assert len(coordinates(1)) == 5 < before
    assert pick("--consensus", "set1/*.star", "--consensus", "set2/*.star", folder="Pick/job005") == 0
    assert len(coordinates(1, "Pick/job005")) == 5


def test_the_settings_of_the_reference_are_not_those_of_decoys(project, monkeypatch):
    asked = []

    def noted(path, state, angpix, sym, *grid):
        asked.append((path, angpix, sym))
        return turned(path, state, angpix, sym, *grid)

    turned = job.turned
    monkeypatch.setattr(job, "turned", noted)
    shutil.copy("sim/truth_map.mrc", "decoy.mrc")
    assert pick(*MAP, "--angpix_ref", "4.1", "--sym", "C2", "--decoys", "decoy.mrc") == 0
    assert set(asked) == {("sim/truth_map.mrc", 4.1, "C2"), ("decoy.mrc", -1.0, "C1")}


def test_particles_of_failed_micrographs_are_missed_ones_and_old_evaluations_go(project, capsys):
    assert pick(*MAP, "--evaluate", TRUTH) == 0
    whole = evaluated()
    Path("sim/micrographs/mic00001.mrc").write_bytes(b"junk")
    assert pick(*MAP, "--evaluate", TRUTH) == 0
    assert evaluated()["spaNrTrue"] == whole["spaNrTrue"]
    assert evaluated()["spaRecall"] < 0.6
    assert "1 of 2 micrographs with a truth failed or have no picks" in capsys.readouterr().err
    assert pick(*MAP) == 0
    assert not Path("Pick/job004/autopick_evaluation.star").exists()


def test_tables_of_relion_3_0_are_read(project):
    found = star.read("sim/truth_ctf.star")
    table, optics = found["micrographs"], found["optics"]
    table.drop("rlnOpticsGroup")
    for column in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        table.set(column, [optics.floats(column)[0]] * len(table))
    table.set("rlnMagnification", [10000.0] * len(table))
    table.set("rlnDetectorPixelSize", [4.0] * len(table))
    table.name = ""
    star.write("old.star", StarFile([table]))
    assert pick(*MAP, source="old.star") == 0
    assert len(coordinates(1)) > 20


@pytest.mark.parametrize(
    ("arguments", "value"), [(LOG, 0.0), ((*LOG, "--no_mask_contamination"), 40.0), (MAP, None), (MAP, 0.0)]
)
def test_a_part_filled_with_one_value_is_not_picked(project, arguments, value):
    name = "sim/micrographs/mic00001.mrc"
    image = mrc.read(name)[0][0]
    edge = 192
    image[:, :edge] = image.mean() if value is None else value
    mrc.write_volume(name, image, 4.0)
    assert pick(*arguments) == 0
    x, y = (coordinates(1).floats(f"rlnCoordinate{axis}") for axis in "XY")
    assert x.min() > edge + 0.38 * 150 / 4
    truth = star.read("sim/truth_coordinates/mic00001.star")[""]
    true = np.stack([truth.floats("rlnCoordinateX"), truth.floats("rlnCoordinateY")], axis=1)
    distance = np.hypot(true[:, :1] - x, true[:, 1:] - y)
    inside = (true[:, 0] > edge + 30) & (true[:, 0] < 620) & (true[:, 1] > 20) & (true[:, 1] < 620)
    assert (distance[inside].min(axis=1) < 10).mean() > 0.8
    assert (distance.min(axis=0) < 10).mean() > 0.8


@pytest.mark.parametrize("arguments", [MAP, LOG])
def test_particles_that_stick_out_are_left_out_unless_asked_for(project, arguments):
    name = "sim/micrographs/mic00001.mrc"
    image = mrc.read(name)[0][0]
    truth = star.read("sim/truth_coordinates/mic00001.star")[""]
    x, y = (truth.floats(f"rlnCoordinate{axis}") for axis in "XY")
    cut = int(np.sort(x)[len(x) // 2])  # through the middle of a particle
    cut -= cut % 2
    mrc.write_stack(name, np.ascontiguousarray(image[None, :, :cut]), 4.0)
    nearest = {}
    for skip in (0, -100):
        assert pick(*arguments, "--skip_side", skip, folder=f"Pick{skip}") == 0
        found = coordinates(1, f"Pick{skip}")
        nearest[skip] = cut - 1 - found.floats("rlnCoordinateX").max()
        assert min(found.floats("rlnCoordinateX").min(), found.floats("rlnCoordinateY").min()) >= 0
    assert nearest[0] > 0.37 * 150 / 4
    assert nearest[-100] < 0.2 * 150 / 4
    assert (x[np.abs(x - cut) < 2]).size == 1
    assert y.size > 20


def test_a_border_of_repeated_rows_is_not_picked(project):
    name = "sim/micrographs/mic00001.mrc"
    image = mrc.read(name)[0][0]
    image[:100] = image[100]
    mrc.write_volume(name, image, 4.0)
    assert pick(*MAP) == 0
    assert coordinates(1).floats("rlnCoordinateY").min() > 100 + 0.38 * 150 / 4


def test_the_truth_of_micrographs_of_one_name_is_told_by_its_folder(project, capsys):
    for folder, number in (("a", 1), ("b", 2)):
        for kind, source in (
            ("mics", f"micrographs/mic{number:05d}.mrc"),
            ("true", f"truth_coordinates/mic{number:05d}.star"),
        ):
            Path(f"{kind}/{folder}").mkdir(parents=True)
            shutil.copy(f"sim/{source}", f"{kind}/{folder}/mic{Path(source).suffix}")
    found = star.read("sim/truth_ctf.star")
    found["micrographs"].set("rlnMicrographName", ["mics/a/mic.mrc", "mics/b/mic.mrc"])
    star.write("same.star", found)
    assert pick(*MAP, "--evaluate", "true/*/*.star", source="same.star") == 0
    assert evaluated()["spaF1"] > 0.95
    Path("true/a/mic_manual.star").write_bytes(Path("true/a/mic.star").read_bytes())
    assert pick(*MAP, "--evaluate", "true/*/*.star", source="same.star", folder="Pick/job005") == 1
    assert "mics/a/mic.mrc: coordinates twice, as of true/a/mic.star and" in capsys.readouterr().err


def test_an_empty_file_is_a_truth_without_particles(project):
    Path("true").mkdir()
    shutil.copy("sim/truth_coordinates/mic00001.star", "true")
    Path("true/mic00002.star").touch()
    assert pick(*MAP, "--evaluate", "true/*.star") == 0
    found = evaluated()
    assert found["spaRecall"] > 0.9
    assert found["spaPrecision"] == pytest.approx(len(coordinates(1)) / found["spaNrPicks"], abs=0.05)


@pytest.mark.parametrize("value", ["nan", "1e9", "word"])
def test_a_defocus_that_is_none_leaves_its_micrograph_out(project, value):
    found = star.read("sim/truth_ctf.star")
    found["micrographs"].set("rlnDefocusU", [value, found["micrographs"].text("rlnDefocusU")[1]])
    star.write("wrong.star", found)
    assert pick(*MAP, source="wrong.star") == 0
    failed = star.read("Pick/job004/micrographs_picked_failed.star")["micrographs"]
    assert f"rlnDefocusU: expected a number of at most 1e+06 Å, found '{value}'" in failed.text("spaFailure")[0]


@pytest.mark.parametrize("name", ["even.mrc", "even.mrcs"])
def test_a_reference_without_contrast_is_refused(project, name, capsys):
    mrc.write_stack(name, np.full((32, 32, 32), 3, np.float32), 4.0)
    assert pick(*MAP, "--ref", name) == 1
    assert f"{name}: expected a reference, found the same value everywhere" in capsys.readouterr().err


def test_memory_follows_the_number_of_templates(project):
    _, items = read_items("sim/truth_ctf.star", "micrographs", "rlnMicrographName", 0)
    few, many = (
        job._memory(items[0], job.Options(i="x", ref="sim/truth_map.mrc", ang=ang, particle_diameter=150.0))
        for ang in (15.0, 1.0)
    )
    assert few < many


def test_picking_by_shape_needs_no_microscope(project):
    found = star.read("sim/micrographs.star")
    found["optics"].drop("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
    star.write("bare.star", found)
    assert pick(*LOG, source="bare.star") == 0
    assert len(coordinates(1)) > 15


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "expected one of --LoG, --ref and --consensus, got none"),
        ((*LOG, "--ref", "sim/truth_map.mrc"), 2, "got --LoG and --ref"),
        (("--LoG",), 2, "--LoG_diam_min -1"),
        ((*LOG, "--decoys", "sim/truth_map.mrc"), 2, "--decoys: expected with --ref"),
        ((*MAP[2:], "--ref", "gone.mrc"), 1, "gone.mrc"),
        ((*MAP, "--i", "sim/micrographs.star"), 1, "no column rlnDefocusU, which --ctf needs"),
        ((*MAP, "--evaluate", "nothing/*.star"), 1, "nothing/*.star"),
        ((*MAP, "--sym", "Q3"), 1, "error: --sym Q3: symmetry group 'Q3'"),
        (("--consensus", "sim/micrographs.star", "--consensus", "x"), 1, "expected a table with rlnCoordinateX"),
        (("--consensus", "gone.star", "--consensus", "x"), 1, "error: --consensus gone.star: no file matches"),
        (("--consensus", "a.star"), 2, "--consensus: expected two different lists or more"),
        (("--consensus", "a", "--consensus", "b", "--threshold", "4"), 2, "expected a mean rank, 0 to 1"),
        (("--consensus", "a", "--consensus", "b", "--skip_side", "4"), 2, "--skip_side: expected with --LoG"),
        (("--consensus", "a", "--consensus", "b", "--min_distance", "4"), 2, "--min_distance: expected with --LoG"),
        ((*MAP, "--evaluate", "nothing*"), 1, "error: --evaluate nothing*: no file matches"),
        ((*MAP, "--LoG_diam_min", "100"), 2, "--LoG_diam_min: expected with --LoG only"),
        ((*LOG, "--sym", "C3"), 2, "--sym: expected with --ref only"),
        ((*LOG, "--LoG_adjust_threshold", "1", "--threshold", "4"), 2, "expected without --threshold"),
        ((*LOG, "--pickname", "micrographs_picked"), 2, "--pickname micrographs_picked: expected another name"),
        ((*LOG, "--threshold", "nan"), 2, "--threshold nan: expected a finite number"),
        ((*LOG, "--shrink", "0.02"), 1, "a particle of 145 Å is 0.7 pixels of 200 Å: expected at least 6"),
        ((*LOG[:2], "3000", "--LoG_diam_max", "3000"), 1, "too small for a particle of 3000 Å"),
    ],
)
def test_wrong_input_is_told_in_a_line(project, arguments, status, words, capsys):
    assert pick(*arguments) == status
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "Traceback" not in told


def test_bad_micrographs_are_left_out_with_a_reason(project):
    spoilt = mrc.read("sim/micrographs/mic00001.mrc")[0][0]
    spoilt[3, 4] = np.nan
    mrc.write_volume("sim/micrographs/mic00001.mrc", spoilt, 4.0)
    assert pick(*LOG) == 0
    failed = star.read("Pick/job004/micrographs_picked_failed.star")["micrographs"]
    assert "1 that are not" in failed.text("spaFailure")[0]
    listed = star.read("Pick/job004/autopick.star")["coordinate_files"]
    assert listed.text("rlnMicrographName") == ["sim/micrographs/mic00002.mrc"]
    flat = {"rlnMicrographName": ["flat.mrc"], "rlnOpticsGroup": [1]}
    mrc.write_volume("flat.mrc", np.ones((640, 640), np.float32), 4.0)
    star.write("flat.star", StarFile([star.read("sim/micrographs.star")["optics"], Block.table("micrographs", flat)]))
    assert pick(*LOG, source="flat.star", folder="Pick/job005") == 1

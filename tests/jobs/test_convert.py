"""`spa convert`: the same map from both files, tables joined, paths found, wrong input told in a line."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spa.cli.main import run
from spa.fsc import fsc
from spa.io import mrc, star
from spa.io.cryosparc import read_table
from spa.io.star import Block, StarFile
from tests.io.cryosparc_tables import COLUMNS, ROWS, N, assert_same, cs_table, fields_of, write_cs

SIMULATION = (
    "--nr_particles 400 --nr_micrographs 4 --box 48 --angpix 4 --snr 1 --seed 3 --astigmatism 3000 --quiet "
    "--nr_optics_groups 2 --kV 300 --kV 200 --Cs 2.7 --Cs 1.4 "
    "--beam_tilt_x 3 --beam_tilt_x -2 --beam_tilt_y -4 --beam_tilt_y 1"
)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A folder with simulated particles of two optics groups, both with beam tilt, and their truth."""
    folder = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["simulate", "--o", "sim", *SIMULATION.split()]) == 0
    return folder


def convert(source: str, target: str, *flags: str) -> int:
    return run(["convert", "--i", source, "--o", target, *flags])


def both_ways(source: str) -> None:
    """there.cs and back.star from a STAR file."""
    assert convert(source, "there.cs") == 0
    assert convert("there.cs", "back.star") == 0


def reconstructed(source: str, *flags: str) -> np.ndarray:
    assert run(["reconstruct", "--i", source, "--o", "map.mrc", "--ctf", "--quiet", *flags]) == 0
    return mrc.read("map.mrc")[0]


def test_both_files_give_the_same_map(simulated, monkeypatch):
    monkeypatch.chdir(simulated)
    both_ways("sim/truth_particles.star")
    truth, ours = reconstructed("sim/truth_particles.star"), reconstructed("back.star")
    assert fsc(truth, ours)[1:24].min() > 0.99999
    assert np.abs(truth - ours).max() < 1e-3 * truth.std()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("alignments3D/pose", lambda values: -values),
        ("alignments3D/shift", lambda values: -values),
        ("ctf/df1_A", lambda values: values + 3000),
        ("ctf/df_angle_rad", lambda values: -values),
        ("ctf/tilt_A", lambda values: -values),
        ("ctf/cs_mm", lambda values: values + 20),
        ("ctf/phase_shift_rad", lambda values: values + 1),
        ("blob/idx", lambda values: values[::-1]),
    ],
)
def test_the_map_shows_every_field_that_is_changed(simulated, monkeypatch, field, change):
    monkeypatch.chdir(simulated)
    assert convert("sim/truth_particles.star", "there.cs") == 0
    truth = reconstructed("sim/truth_particles.star")
    rows = read_table("there.cs").rows
    rows[field] = change(rows[field].copy())
    write_cs("changed.cs", rows)
    assert convert("changed.cs", "changed.star") == 0
    assert fsc(truth, reconstructed("changed.star"))[1:24].min() < 0.98


def test_columns_come_back_to_single_precision(simulated, monkeypatch):
    monkeypatch.chdir(simulated)
    both_ways("sim/truth_particles.star")
    before, after = star.read("sim/truth_particles.star"), star.read("back.star")
    for name in ("optics", "particles"):
        for column in before[name].columns:
            if column in ("rlnImageName", "rlnMicrographName", "rlnOpticsGroupName"):
                assert after[name].text(column) == before[name].text(column)
            elif column != "rlnMicrographOriginalPixelSize":
                values = before[name].floats(column)
                np.testing.assert_allclose(
                    after[name].floats(column), values, rtol=2e-7, atol=3e-7 * np.abs(values).max(), err_msg=column
                )


def test_relion_makes_the_same_map_of_both(simulated, monkeypatch, relion):
    monkeypatch.chdir(simulated)
    both_ways("sim/truth_particles.star")
    maps = []
    for name in ("sim/truth_particles.star", "back.star"):
        command = [relion / "relion_reconstruct", "--i", name, "--o", "relion.mrc", "--ctf", "--skip_gridding"]
        subprocess.run(command, check=True, capture_output=True)
        maps.append(mrc.read("relion.mrc")[0])
    assert fsc(*maps)[1:20].min() > 0.99


def test_a_table_comes_back_with_all_it_had_through_passthrough():
    rows = cs_table("blob", "ctf", "alignments3D", "alignments2D", "location")
    write_cs("a.cs", rows)
    assert convert("a.cs", "a.star") == 0
    found = star.read("a.star")
    order = np.random.default_rng(1).permutation(N)[:5]
    found.put(found["particles"].rows(order))
    star.write("some.star", found)
    assert convert("some.star", "b.cs", "--passthrough", "a.cs") == 0
    again = read_table("b.cs").rows
    assert set(again.dtype.names) >= set(rows.dtype.names)
    assert_same(again, rows[order])


def test_without_uids_images_tell_which_particles_are_meant():
    rows = cs_table()
    write_cs("a.cs", rows)
    assert convert("a.cs", "a.star") == 0
    found = star.read("a.star")
    found["particles"].drop("cryosparcUid")
    names = [name.replace("J5/extract", "elsewhere") + "s" for name in found["particles"].text("rlnImageName")]
    found["particles"].set("rlnImageName", names)
    star.write("a.star", found)
    assert convert("a.star", "b.cs", "--passthrough", "a.cs") == 0
    assert_same(read_table("b.cs").rows, rows)
    found["particles"].set("rlnImageName", [name.replace("mic", "other") for name in names])
    found["particles"].set("cryosparcUid", [str(uid) for uid in rows["uid"].tolist()])
    star.write("a.star", found)
    assert convert("a.star", "b.cs", "--passthrough", "a.cs") == 0
    assert read_table("b.cs").text("blob/path")[0] == "elsewhere/0_other_particles.mrcs"


def test_parts_of_a_job_are_joined(capsys):
    rows = cs_table()
    order = np.random.default_rng(1).permutation(N)
    slots = {slot: [n for n in rows.dtype.names if n.startswith(f"{slot}/")] for slot in ("blob", "ctf", "location")}
    poses = [name for name in rows.dtype.names if name.startswith("alignments3D/")]
    write_cs("all.cs", rows)
    write_cs("a.cs", fields_of(rows, "uid", *slots["blob"], *poses))
    write_cs("ctf.cs", fields_of(rows[order], "uid", *slots["ctf"]))
    write_cs("location.cs", fields_of(rows[::-1], "uid", *slots["location"]))
    assert convert("all.cs", "all.star") == 0
    assert convert("a.cs", "a.star", "--passthrough", "ctf.cs", "--passthrough", "location.cs") == 0
    assert Path("a.star").read_text() == Path("all.star").read_text()
    assert "a.star: 7 particles in 2 optics groups" in capsys.readouterr().out
    assert {"a.cs", "ctf.cs", "location.cs"} <= set(json.loads(Path("job.json").read_text())["inputs"])


def test_particles_that_appear_again_get_identifiers_of_their_own():
    write_cs("a.cs", cs_table())
    assert convert("a.cs", "a.star") == 0
    assert run(["expand", "--i", "a.star", "--o", "copies.star", "--sym", "C4", "--quiet"]) == 0
    assert convert("copies.star", "copies.cs", "--passthrough", "a.cs") == 0
    rows = read_table("copies.cs").rows
    assert len(rows) == 4 * N
    assert len(set(rows["uid"].tolist())) == 4 * N
    assert set(rows["uid"][::4].tolist()) == set(cs_table()["uid"].tolist())


def test_identifiers_of_the_same_file_are_the_same():
    write_cs("a.cs", cs_table())
    assert convert("a.cs", "a.star") == 0
    found = star.read("a.star")
    found["particles"].drop("cryosparcUid")
    star.write("a.star", found)
    assert convert("a.star", "b.cs") == 0
    first = read_table("b.cs").uids()
    assert convert("a.star", "c.cs") == 0
    np.testing.assert_array_equal(read_table("c.cs").uids(), first)
    assert len(set(first.tolist())) == N


def test_images_are_found_from_the_project_of_the_table(capsys):
    rows = cs_table()
    folder = Path("project/J5")
    (folder / "extract").mkdir(parents=True)
    stacks = sorted({path.decode() for path in rows["blob/path"].tolist()})
    for path in stacks:
        mrc.write_stack(Path("project") / path, np.zeros((20, 8, 8), dtype=np.float32), 1.25)
    write_cs("project/J5/a.cs", rows)
    assert convert("project/J5/a.cs", "a.star") == 0
    assert star.read("a.star")["particles"].text("rlnImageName")[0] == f"000001@project/{stacks[0]}"
    assert f"link project/{stacks[0]} to project/{stacks[0]}s" in capsys.readouterr().out
    for path in stacks:
        Path("project", f"{path}s").symlink_to(Path(path).name)
    assert convert("project/J5/a.cs", "a.star") == 0
    assert star.read("a.star")["particles"].text("rlnImageName")[0] == f"000001@project/{stacks[0]}s"
    shutil.rmtree(folder / "extract")
    capsys.readouterr()
    assert convert("project/J5/a.cs", "a.star") == 0
    assert f"images are not found from here, as {stacks[0]}" in capsys.readouterr().out


def write_star(optics: dict, particles: dict) -> None:
    star.write("a.star", StarFile([Block.table("optics", optics), Block.table("particles", particles)]))


OPTICS = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [2.0], "rlnImageSize": [64], "rlnVoltage": [300.0]}
PARTICLES = {
    "rlnImageName": ["000002@s.mrcs", "000007@s.mrcs"],
    "rlnMicrographName": ["m.mrc", "m.mrc"],
    "rlnCoordinateX": [100.0, 20.5],
    "rlnCoordinateY": [30.0, 40.25],
    "rlnOpticsGroup": [1, 1],
}


def test_coordinates_take_the_size_of_the_micrograph_from_its_header(capsys):
    write_star(OPTICS, PARTICLES)
    assert convert("a.star", "a.cs") == 0
    assert "location/center_x_frac" not in read_table("a.cs")
    told = capsys.readouterr().err
    assert "coordinates are not carried over, which takes the size of every micrograph: 1 of 1" in told
    assert "no rlnDefocusU, so no CTF" in told
    mrc.write_volume("m.mrc", np.zeros((1, 400, 500), dtype=np.float32), 0.9)
    assert convert("a.star", "a.cs") == 0
    rows = read_table("a.cs").rows
    np.testing.assert_allclose(rows["location/center_x_frac"], [0.2, 0.041], rtol=1e-6)
    np.testing.assert_allclose(rows["location/center_y_frac"], [0.075, 0.100625], rtol=1e-6)
    assert rows["location/micrograph_shape"].tolist() == [[400, 500]] * 2
    np.testing.assert_allclose(rows["location/micrograph_psize_A"], 0.9, rtol=1e-6)
    assert rows["blob/idx"].tolist() == [1, 6]
    assert rows["blob/sign"].tolist() == [1, 1]


def test_a_file_of_relion_3_0_is_brought_up_to_date_first():
    rows = {
        "rlnImageName": ["1@s.mrcs", "2@s.mrcs"],
        "rlnVoltage": [300.0] * 2,
        "rlnSphericalAberration": [2.7] * 2,
        "rlnAmplitudeContrast": [0.1] * 2,
        "rlnMagnification": [10000.0] * 2,
        "rlnDetectorPixelSize": [1.5] * 2,
        "rlnDefocusU": [9000.0, 8000.0],
        "rlnAngleRot": [1.0, 2.0],
        "rlnAngleTilt": [3.0, 4.0],
        "rlnAnglePsi": [5.0, 6.0],
        "rlnOriginX": [2.0, -3.0],
        "rlnOriginY": [0.5, 0.25],
        "rlnBeamTiltX": [0.1] * 2,
        "rlnBeamTiltY": [0.0] * 2,
    }
    star.write("a.star", StarFile([Block.table("", rows)]))
    mrc.write_stack("s.mrcs", np.zeros((2, 32, 32), dtype=np.float32), 1.5)
    assert convert("a.star", "a.cs") == 0
    found = read_table("a.cs").rows
    np.testing.assert_allclose(found["alignments3D/shift"], [[2, 0.5], [-3, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(found["ctf/tilt_A"], [[2700, 0]] * 2, atol=1e-3)
    np.testing.assert_allclose(found["ctf/df2_A"], [9000, 8000])
    assert found["blob/shape"].tolist() == [[32, 32]] * 2


def test_the_place_of_y_may_be_turned_and_the_old_name_of_the_flag_goes():
    rows = cs_table()
    write_cs("a.cs", rows)
    assert convert("a.cs", "a.star", "--inverty") == 0
    found = star.read("a.star")["particles"].floats("rlnCoordinateY")
    np.testing.assert_allclose(found, (1 - rows["location/center_y_frac"]) * ROWS, atol=1e-3)
    assert star.read("a.star")["particles"].integers("cryosparcMicrographSizeX").tolist() == [COLUMNS] * N
    assert convert("a.star", "b.cs", "--flip_y") == 0
    assert_same(read_table("b.cs").rows[["location/center_y_frac"]], rows[["location/center_y_frac"]])


def test_real_tables_are_converted_or_refused_with_a_reason(shared_data, capsys):
    expected = {
        "cryosparc_P9_J209_000_particles.cs": "",
        "cryosparc_P9_J209_000_volume_map.cs": "expected particles (blob/path, blob/idx, ...), found map",
        "cryosparc_P9_J209_005_volume_precision.cs": "(blob/path, blob/idx, ...), found precision",
        "4k_dataset.cs": "expected particles, found none",
    }
    paths = {path.name: path for path in (shared_data / "star_vintages").rglob("*.cs")}
    assert set(paths) == set(expected)
    for name, reason in expected.items():
        assert convert(str(paths[name]), "a.star", "--quiet") == (1 if reason else 0)
        assert reason in capsys.readouterr().err
    rows = np.load(paths["cryosparc_P9_J209_000_particles.cs"])
    table = star.read("a.star")["particles"]
    assert len(table) == len(rows) == 11764
    assert table.text("rlnImageName")[0].startswith("000001@J204/extract/2397979986758697250_14sep05c_00024sq")
    np.testing.assert_allclose(table.floats("rlnDefocusU"), rows["ctf/df1_A"], atol=1e-3)
    np.testing.assert_allclose(table.floats("rlnOriginXAngst"), rows["alignments3D/shift"][:, 0] * 1.0273438, atol=1e-5)
    assert np.bincount(table.integers("rlnRandomSubset")).tolist() == [0, 5882, 5882]
    assert convert("a.star", "b.cs", "--passthrough", str(paths["cryosparc_P9_J209_000_particles.cs"]), "--quiet") == 0
    again = read_table("b.cs").rows
    # cryoSPARC writes some turns of more than half a turn, which come back the other way round
    beyond = np.linalg.norm(rows["alignments3D/pose"], axis=1) > np.pi
    assert_same(again[~beyond], rows[~beyond])
    assert_same(again, rows, leave=("alignments3D/pose",))
    theirs, ours = (Rotation.from_rotvec(r["alignments3D/pose"].astype(np.float64)) for r in (rows, again))
    assert (theirs.inv() * ours).magnitude().max() < 1e-6


def write_wrong_files() -> None:
    rows = cs_table()
    whole = Path(write_cs("a.cs", rows)).read_bytes()
    Path("cut.cs").write_bytes(whole[: len(whole) // 2])
    Path("cs.star").write_bytes(whole)
    with Path("objects.cs").open("wb") as handle:
        np.save(handle, np.array([{}, None], dtype=object), allow_pickle=True)
    Path("text.cs").write_text("data_\n")
    write_cs("picks.cs", cs_table("location"))
    exposures = np.zeros(2, dtype=[("uid", "<u8"), ("micrograph_blob/path", "S9"), ("ctf/df1_A", "<f4")])
    write_cs("exposures.cs", exposures)
    for field in ("blob/idx", "alignments3D/shift"):
        write_cs(f"no{field.partition('/')[2]}.cs", fields_of(rows, *(n for n in rows.dtype.names if n != field)))
    rows["alignments3D/pose"][1] = np.nan
    write_cs("nan.cs", rows)
    star.write("optics.star", StarFile([Block.table("particles", PARTICLES)]))
    optics = {column: values for column, values in OPTICS.items() if column != "rlnImageSize"}
    star.write("box.star", StarFile([Block.table("optics", optics), Block.table("particles", PARTICLES)]))
    for file, columns in (
        ("names.star", {"rlnImageName": ["1@s.mrcs", "x@s.mrcs"]}),
        ("large.star", {"rlnAngleTilt": [1.0, 2.0], "rlnOriginXAngst": [1.0, 1e39], "rlnOriginYAngst": [1.0, 2.0]}),
        ("uid.star", {"cryosparcUid": ["many", "2"]}),
    ):
        star.write(file, StarFile([Block.table("optics", OPTICS), Block.table("particles", {**PARTICLES, **columns})]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.cs", "cut.cs: expected a cryoSPARC .cs table: "),
        ("objects.cs", "objects.cs: expected a cryoSPARC .cs table: Object arrays cannot be loaded"),
        ("text.cs", "text.cs: expected a cryoSPARC .cs table: "),
        ("picks.cs", "picks.cs: no blob/path: picks without images; make coordinates of them with spa import"),
        ("exposures.cs", "exposures.cs: expected particles (blob/path, blob/idx, ...), found micrograph_blob, ctf"),
        ("noidx.cs", "noidx.cs: no blob/idx; give the .cs file of the same job that has it (passthrough)"),
        ("noshift.cs", "noshift.cs: no alignments3D/shift; give the .cs file"),
        ("nan.cs", "nan.cs: row 2, alignments3D/pose: expected finite numbers, found [nan nan nan]"),
        ("none.cs", "none.cs: cannot be read: No such file"),
        ("optics.star", "optics.star: data_particles: no rlnMagnification and rlnDetectorPixelSize"),
        ("box.star", "box.star: data_optics: no rlnImageSize, and no image to read it from"),
        ("names.star", "names.star: data_particles, row 2, column rlnImageName: expected NUMBER@STACK"),
        ("large.star", "large.star: data_particles, row 2: a value too large for alignments3D/shift"),
        ("uid.star", "uid.star: data_particles, row 1, column cryosparcUid: expected a whole number of 64 bits"),
        ("cs.star", "cs.star: a cryoSPARC .cs table, not a STAR file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_1(name, message, capsys):
    write_wrong_files()
    assert convert(name, "out.cs" if name.endswith(".star") else "out.star") == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith(f"error: {message}")
    assert not Path("out.cs").exists()
    assert not Path("out.star").exists()


def test_an_output_never_replaces_an_input_and_names_say_the_direction(capsys):
    write_cs("a.cs", cs_table())
    assert convert("a.cs", "b.cs") == 2
    assert "expected one file that ends in .cs and one in .star" in capsys.readouterr().err
    assert convert("a.cs", "a.star") == 0
    assert convert("a.star", "a.cs", "--passthrough", "a.cs") == 1
    assert "would replace a file of this job or its input" in capsys.readouterr().err


def test_every_aberration_is_the_same_in_the_map(simulated, monkeypatch):
    """The images know nothing of these aberrations: what counts is that both files correct for the same."""
    monkeypatch.chdir(simulated)
    found = star.read("sim/truth_particles.star")
    odd = ["[12,-9,150,-220,90,310]", "[-5,8,-40,70,210,-160]"]
    even = ["[0.4,9,-12,7,220,-350,900,410,-180]", "[-0.2,-4,6,11,-90,130,-400,-220,310]"]
    found["optics"].set("rlnOddZernike", odd)
    found["optics"].set("rlnEvenZernike", even)
    for column, values in zip(
        ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11"),
        ([1.02, 0.99], [0.01, -0.02], [-0.015, 0.01], [0.985, 1.01]),
        strict=True,
    ):
        found["optics"].set(column, values)
    star.write("aberrated.star", found)
    both_ways("aberrated.star")
    with_them, without = reconstructed("aberrated.star"), reconstructed("sim/truth_particles.star")
    assert fsc(with_them, without)[1:24].min() < 0.9
    assert fsc(with_them, reconstructed("back.star"))[1:24].min() > 0.99999

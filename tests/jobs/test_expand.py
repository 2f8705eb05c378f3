"""`spa expand`: every equivalent pose once, everything else kept."""

from __future__ import annotations

import numpy as np
import pytest

from spa import euler, symmetry
from spa.cli.main import run
from spa.io import mrc, star
from spa.io.star import Block, StarFile

POSE = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
N = 5


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(**columns: list) -> np.ndarray:
    """Five particles with poses, one on a symmetry axis; returns the angles."""
    angles = np.random.default_rng(3).uniform([-180, 0, -180], [180, 180, 180], (N, 3))
    angles[0] = [20.0, 0.0, 30.0]
    rows = {
        "rlnImageName": [f"{i + 1:06d}@s.mrcs" for i in range(N)],
        "rlnOpticsGroup": [1] * N,
        "rlnRandomSubset": [1, 2, 1, 2, 1],
        "rlnOriginXAngst": ["1.2500", "-3.0", "0", "2", "5.75"],
        "labNote": [f"note{i}" for i in range(N)],
        **dict(zip(POSE, angles.T, strict=True)),
        **columns,
    }
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [2.0], "rlnImageSize": [64]}
    blocks = [Block.table("optics", optics), Block.table("particles", rows), Block.pairs("lab", {"labKey": "v"})]
    star.write("in.star", StarFile(blocks))
    return angles


def expand(*arguments: str) -> int:
    return run(["expand", "--i", "in.star", "--o", "out.star", "--random_seed", "1", *arguments])


def poses(columns: tuple[str, ...] = POSE) -> np.ndarray:
    """The angles in the written file."""
    table = star.read("out.star")["particles"]
    return np.stack([table.floats(column) for column in columns], axis=1)


@pytest.mark.parametrize(("group", "order"), [("C4", 4), ("D2", 4), ("D7", 14), ("T", 12), ("O", 24), ("I1", 60)])
def test_every_equivalent_pose_appears_once(group, order):
    angles = write()
    assert expand("--sym", group) == 0
    found = poses().reshape(N, order, 3)
    np.testing.assert_allclose(found[:, 0], angles, atol=1e-5)
    operators = symmetry.operators(group)
    for own, copies in zip(euler.matrix(*angles.T), found, strict=True):
        matrices = euler.matrix(*copies.T)
        assert euler.angular_distance(matrices, own, operators).max() < 1e-3
        apart = [euler.angular_distance(matrices, one) for one in matrices]
        assert (np.array(apart) + 180 * np.eye(order)).min() > 10


def test_all_other_columns_and_blocks_stay():
    write()
    assert expand("--sym", "C3") == 0
    found, source = star.read("out.star"), star.read("in.star")
    assert found.names == source.names
    for column in source["particles"].columns:
        if column not in POSE:
            assert found["particles"].text(column) == [v for v in source["particles"].text(column) for _ in range(3)]
    assert found["lab"].get_text("labKey") == "v"


def test_copies_share_a_half_set_even_where_there_was_none(capsys):
    write()
    found = star.read("in.star")
    found["particles"].drop("rlnRandomSubset")
    star.write("in.star", found)
    assert expand("--sym", "D2") == 0
    halves = star.read("out.star")["particles"].integers("rlnRandomSubset").reshape(N, 4)
    assert sorted(np.unique(halves).tolist()) == [1, 2]
    assert (np.ptp(halves, axis=1) == 0).all()
    assert "half sets drawn" in capsys.readouterr().out


def test_a_symmetric_map_looks_the_same_from_all_copies(tmp_path):
    flags = "--sym D2 --nr_particles 4 --box 32 --angpix 6.5 --snr 5 --seed 1 --quiet"
    assert run(["simulate", "--o", "Sim", *flags.split()]) == 0
    assert run(["expand", "--i", "Sim/truth_particles.star", "--o", "four.star", "--sym", "D2", "--quiet"]) == 0
    assert run(["project", "--i", "Sim/truth_map.mrc", "--ang", "four.star", "--o", "four", "--quiet"]) == 0
    images = mrc.read("four.mrcs")[0].reshape(4, 4, -1)
    for copies in images:
        assert np.corrcoef(copies).min() > 0.995
    assert np.corrcoef(images[:, 0])[~np.eye(4, dtype=bool)].max() < 0.99


def test_centres_of_local_searches_turn_with_the_poses():
    prior = tuple(f"{column}Prior" for column in POSE)
    angles = np.random.default_rng(3).uniform([-180, 0, -180], [180, 180, 180], (N, 3))
    write(**dict(zip(prior, angles.T, strict=True)))
    assert expand("--sym", "C3") == 0
    turned, own = (euler.matrix(*poses(columns).T) for columns in (prior, POSE))
    before = euler.angular_distance(turned[::3], own[::3])
    np.testing.assert_allclose(euler.angular_distance(turned, own), np.repeat(before, 3), atol=1e-3)
    write(rlnAngleTiltPrior=[90.0] * N)
    assert expand("--sym", "C3") == 1


def test_a_group_of_one_and_a_second_expansion_are_told(capsys):
    write()
    assert expand("--sym", "C1") == 0
    assert "--sym C1 has one operator" in capsys.readouterr().err
    write(rlnImageName=["000001@s.mrcs"] * N)
    assert expand("--sym", "C2") == 0
    assert "some images appear more than once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "drop", "message"),
    [
        (("--sym", "X3"), (), "symmetry group 'X3': expected Cn, Dn"),
        (("--sym", "C2"), ("rlnAnglePsi",), "no column rlnAnglePsi, which a symmetry expansion needs"),
        (("--sym", "C2", "--o", "in.star"), (), "--o in.star: would replace"),
    ],
)
def test_wrong_input_is_one_line(arguments, drop, message, capsys):
    write()
    found = star.read("in.star")
    found["particles"].drop(*drop)
    star.write("in.star", found)
    assert expand(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]

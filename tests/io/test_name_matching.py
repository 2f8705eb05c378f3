"""Which micrograph a name means."""

from __future__ import annotations

from spa.io.name_matching import of_micrographs, places, unclear

MICROGRAPHS = [
    "MotionCorr/job002/Movies/a/m1.mrc",
    "MotionCorr/job002/Movies/b/m1.mrc",
    "MotionCorr/job002/Movies/m3.mrc",
]


def rows(*names: str) -> dict[str, int]:
    return places(names, MICROGRAPHS).rows


def test_path_job_folder_and_stem_decide_in_turn():
    assert rows(MICROGRAPHS[1]) == {MICROGRAPHS[1]: 1}
    assert rows("MotionCorr/job009/Movies/b/m1.mrc") == {"MotionCorr/job009/Movies/b/m1.mrc": 1}
    assert rows("picks/a/m1_manual.star", "picks/b/m1.star") == {"picks/a/m1_manual.star": 0, "picks/b/m1.star": 1}
    assert rows("m3_DW.star") == {"m3_DW.star": 2}
    assert rows("m1.star", "m30.star", "other/m1.star") == {}


def test_names_that_share_a_micrograph_and_micrographs_that_share_a_name_are_told():
    for names, words in (
        (("x/m3.star", "y/m3.star"), "coordinates twice, as of x/m3.star and of y/m3.star"),
        (("x/m1.star",), "x/m1.star: may be of MotionCorr/job002/Movies/a/m1.mrc and of"),
        (("a/m1.star", "b/m1.star", "m3.star", "m4.star"), ""),
    ):
        told = unclear(names, MICROGRAPHS, places(names, MICROGRAPHS))
        assert words in told
        assert bool(words) == bool(told)


def test_counts_are_in_plain_words():
    assert of_micrographs(1, 1) == "1 of 1 micrograph"
    assert of_micrographs(1, 2) == "1 of 2 micrographs"

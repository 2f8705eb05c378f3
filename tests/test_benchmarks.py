"""The benchmarks' own arithmetic; what they measure is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.jobs.cases import FULL, QUICK, STRUCTURES, Case, model_diameter
from benchmarks.jobs.exhaustive import CONSTANTS, exhaustive_search
from benchmarks.jobs.measure import Cost, OutOfTime, measured
from benchmarks.jobs.sizes import Quality, Row, growth, text


def row(box: int, milliseconds: float, exhaustive: Quality | None = None) -> Row:
    """A case of 100 particles and 10 iterations at a cost."""
    found = Quality(2.0, 0.99, 0.5, 8.0, 8.5, 10)
    return Row(
        Case("phantom", box, 0.1, 100), 128 / box, Cost(milliseconds, milliseconds, 1.0), found, "abc", exhaustive
    )


def test_growth_finds_the_planted_exponent() -> None:
    rows = [row(box, 3e-3 * box**1.7) for box in (64, 128, 256)]
    (line,) = growth(rows)
    assert "box^1.70 (boxes 64, 128, 256)" in line
    assert growth(rows[:1]) == []


def test_comparison_with_the_exhaustive_search() -> None:
    compared = row(64, 1.0, Quality(1.0, 1.0, 0.4, 128 / 18, 8.0, 12))
    assert compared.angle_ratio == pytest.approx(2.0)
    assert compared.shells_behind == 2
    assert Row.from_dict(json.loads(json.dumps(asdict(compared)))) == compared


def test_a_table_has_a_line_for_each_case_and_its_columns_align() -> None:
    head, *lines = text([row(64, 1.0), row(64, 1000.0)]).splitlines()
    assert len(lines) == 2
    assert {line.index("0.50") for line in lines} == {head.index("shift Å") + 3}


def test_cases_are_distinct_and_their_structures_known() -> None:
    for cases in (QUICK, FULL):
        assert len({case.name for case in cases}) == len(cases)
        assert {case.structure for case in cases} <= STRUCTURES.keys()
    assert 120 < model_diameter(Case("phantom", 64, 0.1, 100), Path()) < 160


def test_the_exhaustive_search_knows_the_constants_of_the_engine() -> None:
    search = exhaustive_search()
    assert all(getattr(search, name) == value for name, value in CONSTANTS.items())


def test_header_names_machine_versions_and_date() -> None:
    line = report.header()
    assert "\n" not in line
    assert all(word in line for word in ("cores", "Python", "NumPy", "Numba", "commit"))


def test_measured_counts_the_cpu_time_and_memory_of_the_command_alone() -> None:
    work = "import time; a = bytearray(2 ** 28); end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    cost = measured([sys.executable, "-c", work])
    assert 0.3 <= cost.cpu_seconds < 5
    assert 0.25 <= cost.peak_gib < 2


def test_measured_stops_at_its_limit_and_reports_a_failure() -> None:
    with pytest.raises(OutOfTime, match="stopped after"):
        measured([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.3)
    with pytest.raises(subprocess.CalledProcessError):
        measured([sys.executable, "-c", "raise SystemExit(2)"])

"""Files appear whole or not at all; paths are looked for as RELION projects need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spa.errors import InputError
from spa.io.files import existing_file, project_path, resolve, whole_file, write_text, write_whole


def test_content_and_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "Å\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_text(encoding="utf-8") == "Å\n"


def test_an_error_leaves_the_old_content_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("ne")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_the_old_content_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/out\.txt: cannot be written: "):
        write_text(tmp_path / "file" / "out.txt", "x")
    with pytest.raises(InputError, match=r"cannot be written: it is a folder"):
        write_text(tmp_path, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"out\.txt: cannot be written: Permission denied"):
        write_text(tmp_path / "out.txt", "x")


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write_whole(tmp_path / "out.txt", lambda _: (tmp_path / "elsewhere").read_text())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "expected a map, found nothing there"),
        (lambda p: p.write_bytes(b""), "expected a map, found an empty file"),
        (lambda p: p.mkdir(), "expected a map, found a folder"),
    ],
)
def test_a_file_that_is_not_there(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "x.mrc"
    make(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=rf"x\.mrc: {message}"):
        existing_file(path, "map")


def test_names_are_looked_for_here_then_beside_the_star_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, data = tmp_path / "project", tmp_path / "data"
    project.mkdir()
    data.mkdir()
    monkeypatch.chdir(project)
    star = data / "particles.star"
    (data / "a.mrcs").touch()
    assert resolve("a.mrcs", star) == data / "a.mrcs"
    (project / "a.mrcs").touch()
    assert resolve("a.mrcs", star) == Path("a.mrcs")
    assert resolve("nowhere.mrcs", star) == Path("nowhere.mrcs")
    assert resolve(str(data / "a.mrcs"), star) == data / "a.mrcs"
    assert project_path(project / "sub" / "b.mrc") == "sub/b.mrc"
    assert project_path("sub/../c.mrc") == "c.mrc"
    assert project_path(data / "a.mrcs") == str(data / "a.mrcs")

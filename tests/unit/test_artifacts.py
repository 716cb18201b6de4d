"""How files become artifacts, and what they are called before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from farm.artifacts import JobFolder, is_staging_name, seal, sha256_of, staging_name
from farm.states import ArtifactKind
from farm.store import Folder, write_sealed


@pytest.mark.parametrize(
    "name",
    ["film.mp4", "课程一.mp4", "no suffix", "dots.in.name.mp4", ".hidden", "课" * 79 + ".mp4", "x" * 240 + ".mp4"],
)
@pytest.mark.parametrize("token", [1, 10**12])
def test_a_staging_name_is_hidden_short_enough_and_known_again(name: str, token: int) -> None:
    staged = staging_name(Path("/films") / name, token)
    assert staged.parent == Path("/films")
    assert staged.name.startswith(".")
    assert staged.suffix == Path(name).suffix or not Path(name).suffix
    assert len(staged.name.encode()) <= 255
    assert is_staging_name(staged)
    assert not is_staging_name(Path(name))


def test_two_tokens_and_two_long_names_never_share_a_staging_file() -> None:
    one, other = Path("/f") / ("课" * 78 + "一.mp4"), Path("/f") / ("课" * 78 + "二.mp4")
    names = {staging_name(path, token) for path in (one, other) for token in (1, 2, 12345678)}
    assert len(names) == 6


def test_what_a_library_puts_beside_a_staging_file_is_known_as_one_too() -> None:
    assert is_staging_name(Path(".portrait.t1.png.t1.part.png.8x_2k"))


def test_a_sealed_file_has_its_size_and_hash_and_leaves_no_staging_file(tmp_path: Path) -> None:
    final = tmp_path / "report.json"
    data = b"x" * 3_000_000
    artifact = write_sealed(Folder(tmp_path), final, data, 3, ArtifactKind.REPORT)
    assert final.read_bytes() == data
    assert (artifact.path, artifact.size_bytes) == (str(final), len(data))
    assert artifact.sha256 == hashlib.sha256(data).hexdigest() == sha256_of(final)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_sealing_replaces_an_older_file_at_once(tmp_path: Path) -> None:
    final, staged = tmp_path / "film.mp4", tmp_path / ".film.mp4.t2.part.mp4"
    final.write_bytes(b"old")
    staged.write_bytes(b"new")
    seal(staged, final, ArtifactKind.FILM)
    assert final.read_bytes() == b"new"


def test_a_jobs_files_carry_the_token_of_the_lease_that_made_them(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, 1234567).make()
    assert folder.path == tmp_path / "1234/1234567"
    assert folder.segment(7, 3, ".mp4") == folder.path / "segments/00007.t3.mp4"
    assert folder.file("portrait.png", 2) == folder.path / "portrait.t2.png"
    assert (folder.path / "segments").is_dir()

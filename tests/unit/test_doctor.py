"""What `farm doctor` says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.checkup import examine_engine_files
from farm.config import load_settings
from farm.doctor import examine
from farm.roster import find_worker


@pytest.mark.parametrize("codec", ["libx264", "h264_nvenc"])
def test_the_encoders_are_tried_and_one_that_jobs_need_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ffmpeg: Path, codec: str
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FARM_FILM__CODEC", codec)
    found = {finding.what: finding for finding in examine(load_settings())}
    told = found["encoders"]
    assert told.verdict == "well"
    assert told.found.startswith("libx264 works; h264_nvenc ") and told.found.endswith(f"; jobs use {codec}")
    missed = [finding for what, finding in found.items() if what.startswith("encoder of ")]
    if codec == "libx264":
        assert missed == []
    else:  # a worker on the processor sees no card, whatever the machine has
        assert [finding.verdict for finding in missed] == ["wrong"]
        assert missed[0].found.startswith("on cpu h264_nvenc does not work: ")
        assert 'film.codec = "libx264"' in missed[0].advice


def test_files_that_an_engine_lacks_are_told_with_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second user of a machine has a cache folder of their own, in which nobody has put them."""
    monkeypatch.setenv("FARM_FACE_MODELS", str(tmp_path / "none"))
    spec = find_worker("preview")
    (missed,) = examine_engine_files(spec)
    assert (missed.verdict, missed.advice) == ("wrong", "farm models pull preview")
    assert missed.found == f"the face models are not in {tmp_path / 'none'}"
    assert list(examine_engine_files(find_worker("cpu"))) == []

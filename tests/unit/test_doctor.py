"""What `farm doctor` says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.config import load_settings
from farm.doctor import examine


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

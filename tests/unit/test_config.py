"""Settings: three places, the later ones winning, and errors that name file and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm.config import Settings, load_settings
from farm.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    return tmp_path


def test_what_ships_is_complete_and_names_places_in_the_home(home: Path) -> None:
    settings = load_settings()
    assert settings.home == home
    assert settings.ledger == f"sqlite:///{home}/ledger.db"
    assert settings.redis_is_private
    assert settings.artifacts_dir == home / "artifacts"
    assert settings.lease.beat_seconds * 3 < settings.lease.ttl_seconds


def test_the_home_file_wins_over_what_ships_and_variables_win_over_both(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "farm.toml").write_text("[segments]\nseconds = 60.0\nfirst_seconds = 9.0\n")
    monkeypatch.setenv("FARM_SEGMENTS__SECONDS", "90")
    monkeypatch.setenv("FARM_LEDGER_URL", "postgresql://u@h/farm")
    settings = load_settings()
    assert (settings.segments.seconds, settings.segments.first_seconds) == (90.0, 9.0)
    assert settings.film.crf == load_settings().film.crf
    assert settings.ledger == "postgresql://u@h/farm"
    assert load_settings(default_model="x").default_model == "x"


def test_lists_are_read_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_INPUT_ROOTS", '["/inputs", "/more"]')
    assert load_settings().input_roots == [Path("/inputs"), Path("/more")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lease]\nttl_seconds = -1\n", "lease.ttl_seconds: Input should be greater than 0"),
        ("[lease]\nttl_second = 30\n", "lease.ttl_second: there is no such key"),
        ("ledger = 'x'\n", "ledger: there is no such key"),
        ("[film]\ncrf = 'fine'\n", "film.crf: Input should be a valid integer"),
        ("[film]\ncodec = 'x265'\n", "film.codec: Input should be 'libx264' or 'h264_nvenc'"),
        ("lease = 3\n", "lease: Input should be a valid dictionary"),
        ("[lease\n", "Expected ']' at the end of a table declaration"),
    ],
    ids=str,
)
def test_a_wrong_key_is_told_with_its_file(home: Path, text: str, said: str) -> None:
    (home / "farm.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{home}/farm.toml: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FARM_LEASE__TTL_SECONDS", "soon", "variable FARM_LEASE__TTL_SECONDS: lease.ttl_seconds: "),
        ("FARM_INPUT_ROOTS", "/inputs", "variable FARM_INPUT_ROOTS: input_roots: must be JSON"),
        (
            "FARM_REDIS_URL",
            "http://:s3cret@h",
            "variable FARM_REDIS_URL: redis_url: must be empty or an address that begins",
        ),
        ("FARM_LEASE", "{", "variable FARM_LEASE: lease: must be JSON"),
    ],
)
def test_a_wrong_variable_is_told_with_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value) and "s3cret" not in str(caught.value)


def test_a_file_that_is_no_text_is_told_with_its_name(home: Path) -> None:
    (home / "farm.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=f"^{home}/farm.toml: "):
        load_settings()


def test_a_home_with_a_long_path_gets_a_short_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Path("/h"), Path("/" + "x" * 120)
    assert _settings_at(monkeypatch, short).redis_socket == short / "redis/redis.sock"
    socket = _settings_at(monkeypatch, long).redis_socket
    assert len(os.fsencode(socket)) < 108
    assert socket == _settings_at(monkeypatch, long).redis_socket
    assert socket != _settings_at(monkeypatch, Path("/" + "y" * 120)).redis_socket


def _settings_at(monkeypatch: pytest.MonkeyPatch, home: Path) -> Settings:
    monkeypatch.setenv("FARM_HOME", str(home))
    return load_settings()


def test_a_home_may_be_written_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FARM_HOME", "~/farm home")
    assert load_settings().home == tmp_path / "farm home"


def test_long_audio_gets_more_time_to_prepare() -> None:
    limits = load_settings().limits
    assert limits.step_timeout(0) == limits.step_seconds
    assert limits.step_timeout(7200) == limits.step_seconds + 2 * limits.step_seconds_per_audio_hour

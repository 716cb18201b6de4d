"""What a submit may ask of a file, and how files that cannot be used are refused."""

from __future__ import annotations

import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from farm.errors import InputError
from farm.media.decode import decode_driving
from farm.media.probe import AudioInfo, ImageInfo, probe_audio, probe_image

from .conftest import MakeMedia, WriteWav

SINE = ("-f", "lavfi", "-i", "sine=duration=1:sample_rate=48000")


def test_a_wav_tells_its_length_rate_and_channels(write_wav: WriteWav):
    path = write_wav("a.wav", np.zeros((24_000, 2)), 48_000)
    assert probe_audio(path) == AudioInfo(0.5, 48_000, 2, "pcm_s16le", "wav")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp3", SINE),
        ("a.m4a", SINE),
        ("a.flac", SINE),
        ("a.ogg", SINE),
        ("a.opus", SINE),
        ("a.mka", SINE),
        ("a.mp4", ("-f", "lavfi", "-i", "testsrc=size=64x64:duration=1", *SINE)),
    ],
)
def test_common_formats_are_sound(make_media: MakeMedia, name: str, options: tuple[str, ...]):
    info = probe_audio(make_media(name, *options))
    assert info.duration_seconds == pytest.approx(1, abs=0.06)
    assert (info.sample_rate, info.channels) == (48_000, 1)


def test_a_recording_that_does_not_say_its_length_is_measured_by_its_packets(make_media: MakeMedia):
    path = make_media("live.webm", *SINE, "-live", "1", "-c:a", "libopus")
    assert probe_audio(path).duration_seconds == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("name", ["-rf.wav", "a\nb.wav", 'it\'s "it".wav', "你好.wav", "a:b%03d?*.wav", "pipe:0"])
def test_no_file_name_has_a_meaning(write_wav: WriteWav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    write_wav(name, np.zeros(800), 8_000)
    monkeypatch.chdir(tmp_path)
    assert probe_audio(Path(name)).sample_rate == 8_000
    assert decode_driving(Path(name), Path(f"{name}.f32")).native_samples == 800


def refuse(probe: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(InputError) as caught:
        probe(path)
    said = str(caught.value)
    assert str(path) in said
    assert said.endswith(".")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("probe", [probe_audio, probe_image])
def test_what_is_no_file_is_refused_by_what_it_is(probe: Callable[[Path], object], tmp_path: Path):
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    assert "does not exist" in refuse(probe, tmp_path / "missing")
    assert "is a directory" in refuse(probe, tmp_path)
    assert "is empty" in refuse(probe, tmp_path / "empty")
    assert "pipe, socket or device" in refuse(probe, tmp_path / "fifo")
    assert "pipe, socket or device" in refuse(probe, Path("/dev/zero"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("probe", [probe_audio, probe_image])
def test_a_file_without_permission_is_refused(probe: Callable[[Path], object], tmp_path: Path):
    path = tmp_path / "secret"
    path.write_bytes(b"RIFF")
    path.chmod(0)
    assert "may not be read" in refuse(probe, path)


def test_text_and_noise_are_no_sound(tmp_path: Path):
    (tmp_path / "text.wav").write_text("Dear diary,\n" * 100)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(1).bytes(5000))
    assert "not a sound file" in refuse(probe_audio, tmp_path / "text.wav")
    refuse(probe_audio, tmp_path / "noise.mp3")


def test_a_video_without_sound_is_refused(make_media: MakeMedia):
    path = make_media("silent.mp4", "-f", "lavfi", "-i", "testsrc=size=64x64:duration=1")
    assert "has no sound" in refuse(probe_audio, path)


def test_a_wav_without_samples_is_refused(write_wav: WriteWav):
    assert "holds no samples" in refuse(probe_audio, write_wav("none.wav", np.zeros(0), 16_000))


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n{other}\n#EXT-X-ENDLIST\n",
    "list.mp3": "#EXTM3U\n#EXTINF:1.0,\n{other}\n#EXT-X-ENDLIST\n",
    "script.wav": "ffconcat version 1.0\nfile '{other}'\n",
    "script.txt": "ffconcat version 1.0\nfile {other}\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n",
    "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet contentType="audio" mimeType="audio/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "subtitles.vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\n{other}\n",
}


@pytest.fixture
def tripwire(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """A pipe, and whether anybody has opened it for reading: opening it for writing waits for a reader."""
    path = tmp_path / "other.wav"
    os.mkfifo(path)
    stepped_on = threading.Event()

    def wait_for_reader() -> None:
        fd = os.open(path, os.O_WRONLY)
        stepped_on.set()
        os.close(fd)

    waiter = threading.Thread(target=wait_for_reader)
    waiter.start()
    yield path, stepped_on.is_set
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # held, so that a waiter who comes late gets through too
    waiter.join()
    os.close(reader)


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("how", ["path", "name", "http"])
def test_a_playlist_is_refused_and_nothing_it_names_is_opened(
    tmp_path: Path, tripwire: tuple[Path, Callable[[], bool]], name: str, how: str
):
    other, was_opened = tripwire
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        target = {"path": str(other), "name": other.name, "http": f"http://127.0.0.1:{port}/a.ts"}[how]
        path = tmp_path / name
        path.write_text(PLAYLISTS[name].format(other=target, port=port))

        refuse(probe_audio, path)
        with pytest.raises(InputError):
            decode_driving(path, tmp_path / "driving.f32")

        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not was_opened()
    assert not (tmp_path / "driving.f32").exists()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_pictures_tell_their_size(tmp_path: Path, kind: str):
    path = tmp_path / f"p.{kind}"
    Image.new("RGB", (60, 40), "teal").save(path, kind)
    assert probe_image(path) == ImageInfo(60, 40, kind)


def test_a_picture_taken_sideways_is_measured_upright(tmp_path: Path):
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    assert probe_image(path) == ImageInfo(40, 60, "jpeg")


def test_text_posing_as_a_picture_is_refused(tmp_path: Path):
    path = tmp_path / "p.png"
    path.write_text("not a png at all")
    assert "not a picture" in refuse(probe_image, path)


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, data)
    )


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000])
def test_a_picture_bomb_is_refused_by_its_header(tmp_path: Path, side: int):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    assert "too many pixels" in refuse(probe_image, path)


def test_a_picture_cut_inside_its_header_is_refused(tmp_path: Path):
    path = tmp_path / "cut.png"
    path.write_bytes(png_header(60, 40)[:20])
    refuse(probe_image, path)

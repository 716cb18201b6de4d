"""An object store as the place of files: a real SeaweedFS, with a wire before it that can be cut and spoilt."""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from farm.artifacts import sha256_of, staging_name
from farm.config import Settings, StoreSettings, load_settings
from farm.doctor import examine
from farm.errors import ConfigError, FileLost, InputError, StoreError
from farm.file_cache import FileCache
from farm.ledger.values import Artifact, NewArtifact
from farm.states import ArtifactKind
from farm.store import Store, open_store, write_sealed
from tests.conftest import S3Server
from tests.system.wire import Wire, wire_to

CONTENT = bytes(range(256)) * 1500  # 384,000 bytes: several reads of a socket, one request


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def settings(s3_server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of one machine of a farm."""
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "here"))
    for name, value in s3_server.environment(prefix).items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.fixture
def store(settings: Settings) -> Store:
    return open_store(settings)


@pytest.fixture
def wire(s3_server: S3Server) -> Iterator[Wire]:
    with wire_to(s3_server.endpoint) as wire:
        yield wire


def changed(settings: Settings, home: Path | None = None, **store: Any) -> Settings:
    """Of another machine, or with other settings of the store."""
    own = settings.store.model_dump() | store
    return settings.model_copy(update={"home": home or settings.home, "store": StoreSettings(**own)})


def put(store: Store, content: bytes = CONTENT, *, job_id: int = 7, token: int = 1) -> NewArtifact:
    final = store.folder(job_id).make().segment(0, token, ".mp4")
    return write_sealed(store, final, content, token, ArtifactKind.SEGMENT)


def published(file: NewArtifact) -> Artifact:
    return Artifact(1, 7, file.kind, 0, file.path, file.size_bytes, file.sha256, file.facts, 0.0)


def test_what_one_machine_seals_another_fetches(settings: Settings, store: Store, tmp_path: Path) -> None:
    file = put(store)
    assert file.path.startswith(settings.store.url) and file.path.endswith(
        "artifacts/0000/0000007/segments/00000.t1.mp4"
    )
    other = open_store(changed(settings, tmp_path / "there"))
    fetched = other.fetch(file)
    assert fetched.is_relative_to(tmp_path / "there") and fetched.read_bytes() == CONTENT and fetched.suffix == ".mp4"
    assert other.fault(published(file)) is None
    assert not [path for path in store.folder(7).path.rglob("*") if path.is_file()]  # nothing is left where it was made
    assert pickle.loads(pickle.dumps(other)).fetch(file) == fetched


def test_a_large_file_travels_in_parts_and_is_one_object(
    store: Store, settings: Settings, s3_server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.object_store.PART_BYTES", 5 << 20)  # the smallest that S3 allows
    content = os.urandom((12 << 20) + 345)
    file = put(store, content)
    assert list(s3_server.keys(prefix).values()) == [len(content)]
    assert open_store(changed(settings, tmp_path / "there")).fetch(file).read_bytes() == content


def test_an_object_that_was_changed_is_refused_and_nothing_of_it_is_kept(
    store: Store, settings: Settings, s3_server: S3Server, prefix: str, tmp_path: Path
) -> None:
    file = put(store)
    key = f"{prefix}/artifacts/0000/0000007/segments/00000.t1.mp4"
    with closing(s3_server.client()) as client:
        client.put_object(Bucket=s3_server.bucket, Key=key, Body=CONTENT[:-1] + b"!")
    other = open_store(changed(settings, tmp_path / "there"))
    with pytest.raises(FileLost, match="was changed since it was published"):
        other.fetch(file)
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert other.fault(published(file)) == "was changed since it was published"
    with closing(s3_server.client()) as client:
        client.put_object(Bucket=s3_server.bucket, Key=key, Body=CONTENT[:-1])
    assert other.fault(published(file)) == f"has {len(CONTENT) - 1} bytes, {len(CONTENT)} were published"
    with pytest.raises(FileLost):
        other.lend(published(file), other.folder(8).segment(0, 1, ".mp4"))
    store.delete(file.path)
    assert other.fault(published(file)) == "is gone"
    with pytest.raises(FileLost, match="is gone"):
        other.fetch(file)


@pytest.mark.parametrize("what", ["spoil body", "cut body", "cut answer"])
def test_an_upload_that_breaks_or_is_spoilt_on_its_way_is_sent_again(
    settings: Settings, s3_server: S3Server, prefix: str, wire: Wire, what: str
) -> None:
    wire.arm(f"PUT /{s3_server.bucket}/{prefix}/artifacts".encode(), what)
    file = put(open_store(changed(settings, endpoint=wire.endpoint)))
    assert wire.happened.is_set()
    assert open_store(settings).fault(published(file)) is None


@pytest.mark.parametrize("what", ["spoil answer", "cut answer"])
def test_a_download_that_breaks_or_is_spoilt_on_its_way_is_fetched_again(
    settings: Settings, store: Store, s3_server: S3Server, tmp_path: Path, wire: Wire, what: str
) -> None:
    file = put(store)
    other = open_store(changed(settings, tmp_path / "there", endpoint=wire.endpoint))
    wire.arm(f"GET /{s3_server.bucket}/".encode(), what)
    assert other.fetch(file).read_bytes() == CONTENT
    assert wire.happened.is_set()


def test_a_file_that_changes_while_it_is_published_is_not_published(
    store: Store, s3_server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = store.folder(7).make().segment(0, 1, ".mp4")
    staged = staging_name(final, 1)
    staged.write_bytes(CONTENT)
    monkeypatch.setattr("farm.object_store.sha256_of", lambda path: "0" * 64)  # what it was a moment ago
    with pytest.raises(FileLost, match="was changed while it was published"):
        store.seal(staged, final, ArtifactKind.SEGMENT)
    assert s3_server.keys(prefix) == {}


# What is wrong, in one sentence


def wrongs(settings: Settings) -> list[tuple[Settings, str]]:
    return [
        (changed(settings, access_key="nobody"), "does not know the access key"),
        (changed(settings, secret_key="s3cret-of-somebody"), "refuses the keys; check store.secret_key"),
        (changed(settings, url="s3://no-such-bucket"), "has no bucket no-such-bucket; make it, or mend store.url"),
        (changed(settings, endpoint="http://127.0.0.1:9", patience_seconds=0.3), "does not answer"),
    ]


@pytest.mark.parametrize("number", range(4))
def test_what_is_wrong_with_a_store_is_told_in_one_sentence_without_the_keys(settings: Settings, number: int) -> None:
    wrong, sentence = wrongs(settings)[number]
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(wrong).probe()
    finding = next(f for f in examine(wrong) if f.what == "store")
    assert finding.verdict == "wrong" and sentence in finding.found
    for text in (str(caught.value), finding.found, repr(wrong)):
        assert "\n" not in text
        assert wrong.store.secret_key.get_secret_value() not in text
    assert wrong.store.access_key not in str(caught.value)


def test_a_wrong_clock_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    right = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *args: right(*args) - timedelta(hours=2))
    with pytest.raises(StoreError, match=r"this machine's clock and that of the object store at .* differ by minutes"):
        open_store(settings).probe()


def test_the_doctor_writes_reads_and_deletes_one_object(settings: Settings, s3_server: S3Server, prefix: str) -> None:
    finding = next(f for f in examine(settings) if f.what == "store")
    assert (finding.verdict, s3_server.keys(prefix)) == ("well", {})
    assert finding.found.startswith(settings.store.url)


def test_keys_are_nowhere_in_what_a_misspelt_setting_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir(exist_ok=True)
    (tmp_path / "here" / "farm.toml").write_text('[store]\nsecret_kye = "s3cret-of-mine"\n')
    with pytest.raises(ConfigError, match=r"store\.secret_kye") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)
    (tmp_path / "here" / "farm.toml").unlink()
    monkeypatch.setenv("FARM_STORE__ENDPOINT", "https://me:s3cret-of-mine@s3.example.org")
    with pytest.raises(ConfigError, match=r"store\.endpoint: .* without keys") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="given together"):
        open_store(changed(settings, access_key=""))


# Inputs


def test_an_input_is_put_once_by_its_content_and_fetched_where_its_path_is_unknown(
    settings: Settings, store: Store, s3_server: S3Server, prefix: str, tmp_path: Path
) -> None:
    first, twin = tmp_path / "anna.jpg", tmp_path / "also-anna.jpg"
    first.write_bytes(b"a picture")
    twin.write_bytes(b"a picture")
    digest = sha256_of(first)
    store.keep_inputs({(str(first), digest), (str(twin), digest)})
    store.keep_inputs({(str(first), digest)})
    assert list(s3_server.keys(prefix)) == [f"inputs/{digest}"]
    assert store.input(str(first), digest, "portrait") == first  # this machine has it
    first.write_bytes(b"another picture of that name")
    fetched = store.input(str(first), digest, "portrait")
    assert fetched.read_bytes() == b"a picture" and fetched.suffix == ".jpg"
    with pytest.raises(InputError, match="was changed after it was submitted"):
        store.input(str(first), "0" * 64, "portrait")
    with pytest.raises(InputError, match="is gone; it was there at submit"):
        store.input(str(tmp_path / "gone.jpg"), "0" * 64, "portrait")


def test_an_input_that_a_new_job_needs_is_made_young_again(
    store: Store, s3_server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "anna.jpg"
    path.write_bytes(b"a picture")
    given = {(str(path), sha256_of(path))}
    store.keep_inputs(given)
    (before,) = store.strays(time.time() + 3600)
    monkeypatch.setattr("farm.object_store.FRESH_SECONDS", -1.0)
    deadline = time.monotonic() + 60
    while next(iter(store.strays(time.time() + 3600))).written_at <= before.written_at:  # the store counts seconds
        assert time.monotonic() < deadline
        store.keep_inputs(given)
    assert len(s3_server.keys(prefix)) == 1


# What is left behind


def test_what_a_publisher_left_is_found_and_deleted(
    store: Store, s3_server: S3Server, prefix: str, settings: Settings
) -> None:
    file = put(store)
    with closing(s3_server.client()) as client:
        key = f"{prefix}/artifacts/0000/0000007/film.t1.mp4"
        upload = client.create_multipart_upload(Bucket=s3_server.bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=s3_server.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half a film")
        assert list(store.strays(time.time() - 3600)) == []
        strays = {stray.place: stray for stray in store.strays(time.time() + 3600)}
        unfinished = f"{settings.store.url}/artifacts/0000/0000007/film.t1.mp4?upload={upload}"
        assert set(strays) == {file.path, unfinished}
        assert (strays[file.path].job_id, strays[file.path].unfinished) == (7, False)
        assert strays[unfinished].unfinished
        for place in (*strays, *strays):  # what is gone already is no error
            store.delete(place)
        assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=prefix)
    assert s3_server.keys(prefix) == {}


def test_a_segment_is_lent_within_the_store_and_outlives_its_lender(store: Store, settings: Settings) -> None:
    file = put(store)
    lent = store.lend(published(file), store.folder(8).make().segment(3, 1, ".mp4"))
    assert lent.path != file.path and (lent.sha256, lent.size_bytes) == (file.sha256, file.size_bytes)
    store.delete(file.path)
    assert store.fault(published(lent)) is None


def test_a_file_of_several_parts_is_there_although_the_last_answer_was_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.object_store.PART_BYTES", 5 << 20)  # the smallest that S3 allows
    client = store._client()  # type: ignore[attr-defined]
    complete, asked = client.complete_multipart_upload, []

    def lose_the_answer(**which: Any) -> None:
        asked.append(which)
        if len(asked) == 1:
            complete(**which)
            raise ConnectionClosedError(endpoint_url="the store")
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")  # as MinIO says it

    monkeypatch.setattr(client, "complete_multipart_upload", lose_the_answer)
    assert store.fault(published(put(store, CONTENT * 14))) is None
    assert len(asked) == 2


# The cache


def test_the_cache_drops_what_was_used_least_lately_and_spares_what_was_used_just_now(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 1000)

    def take(letter: str, hours_ago: float) -> tuple[str, Path]:
        path = tmp_path / "come"
        path.write_text(letter * 400)
        digest = sha256_of(path)
        kept = cache.take(path, digest, ".mp4")
        os.utime(kept, (time.time() - hours_ago * 3600,) * 2)
        return digest, kept

    first, second = take("a", 5), take("b", 3)
    assert cache.find(first[0], ".mp4", 400, verify=True) == first[1]  # used just now
    third, fourth = take("c", 2), take("d", 0)
    assert [path.exists() for _, path in (first, second, third, fourth)] == [True, False, False, True]
    assert cache.find(second[0], ".mp4", 400, verify=False) is None
    fourth[1].write_text("e" * 400)
    assert cache.find(fourth[0], ".mp4", 400, verify=True) is None  # not what its name says


def test_the_cache_may_lie_on_a_disk_of_its_own(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is one file system here")
        (tmp_path / "cache").symlink_to(folder)
        made = tmp_path / "made"
        made.write_bytes(CONTENT)
        digest = sha256_of(made)
        kept = FileCache(tmp_path / "cache", 1_000_000).take(made, digest, ".mp4")
        assert kept.read_bytes() == CONTENT and not made.exists()
        assert [path.name for path in Path(folder).rglob("*") if path.is_file()] == [kept.name]


# Without it


def test_a_farm_with_a_folder_never_loads_the_library(tmp_path: Path) -> None:
    code = (
        "import sys, farm.cli, workers.runner, farm.server.app, farm.config, farm.store;"
        "farm.cli.cli.load_all();"
        "farm.store.open_store(farm.config.load_settings());"
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")} | {"FARM_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_without_the_library_the_setting_is_told_to_need_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['boto3'] = None; from farm.cli import main; main()"
    env = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")}
    env |= {"FARM_HOME": str(tmp_path), "FARM_STORE__URL": "s3://films"}
    done = subprocess.run([sys.executable, "-c", code, "doctor"], env=env, capture_output=True, text=True)
    assert "the extra `s3` (boto3) is not installed" in " ".join(done.stdout.split()), done.stderr
    assert "Traceback" not in done.stderr


def test_a_folders_farm_says_that_a_place_is_in_an_object_store(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    file = put(store)
    folder = open_store(changed(settings, url=""))
    with pytest.raises(StoreError, match=r"lies in an object store, and store\.url names none"):
        folder.fetch(file)
    mine = write_sealed(folder, tmp_path / "film.mp4", b"a film of before", 1, ArtifactKind.FILM)
    assert store.fetch(mine) == tmp_path / "film.mp4"

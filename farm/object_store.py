"""An S3-compatible object store as the place of published files.  The one door to boto3.

Keys below the prefix of store.url: `artifacts/<thousands>/<job>/…` as in the folder, each with the token of the lease
that made it, so that nobody ever writes an object twice; and `inputs/<sha256>` for portraits and sounds.

An object is written whole or not at all: up to one part by a single request, larger ones as parts that become an object
when the last is there.  The SHA-256 of every request's body travels with it and is compared by the server
(`x-amz-checksum-sha256`), the whole file's is taken from the bytes that were sent, and on the way back size and SHA-256
are compared with the ledger's before a file gets its name in the cache.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from farm.artifacts import JobFolder, sha256_of, sync
from farm.config import StoreSettings
from farm.errors import ConfigError, FileLost, InputError, StoreError
from farm.file_cache import FileCache
from farm.ledger.values import Artifact, Job, NewArtifact
from farm.states import ArtifactKind
from farm.store import PROBE, Stray, fault_of, local_strays, unchanged

log = logging.getLogger(__name__)
T = TypeVar("T")

PART_BYTES = 16 << 20
FRESH_SECONDS = 43_200.0  # an input that lies here longer is made young again before a job relies on it
_BLOCK = 1 << 20
_AT_ONCE = 4  # inputs that travel beside each other; each may hold one part in memory
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_PASSING = {
    "BadDigest",
    "InternalError",
    "RequestTimeout",
    "SlowDown",
    "ServiceUnavailable",
    "XAmzContentSHA256Mismatch",
}
_PASSING |= {"429", "500", "502", "503", "504", "IncompleteBody", "OperationAborted", "Throttling", "TooManyRequests"}


class _Spoilt(Exception):
    """What came over the wire is not what was published."""


class ObjectStore:
    """Files travel; each machine keeps what it fetched or published in a cache of bounded size."""

    def __init__(self, settings: StoreSettings, home: Path) -> None:
        """Asks nothing of the store yet.  Raises ConfigError."""
        if bool(settings.access_key) != bool(settings.secret_key.get_secret_value()):
            raise ConfigError("settings: store.access_key and store.secret_key are given together or not at all")
        self._settings, self._home = settings, home
        self._root = home / "artifacts"
        self._cache = FileCache(home / "cache", round(settings.cache_gb * 1e9))
        self._bucket = settings.bucket
        self._lock = threading.Lock()
        self._client_made: Any = None

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[StoreSettings, Path]]:
        return ObjectStore, (self._settings, self._home)

    # What a store does

    @property
    def where(self) -> str:
        return self._place("")

    def folder(self, job_id: int) -> JobFolder:
        return JobFolder(self._root, job_id)

    def film_path(self, job: Job, token: int) -> Path:
        return self.folder(job.id).file("film.mp4", token)

    def seal(
        self, staged: Path, final: Path, kind: ArtifactKind, facts: Mapping[str, Any] | None = None
    ) -> NewArtifact:
        key = self._key(f"artifacts/{final.relative_to(self._root).as_posix()}")
        digest, size = sha256_of(staged), staged.stat().st_size
        self._upload(staged, key, digest, size)
        self._cache.take(staged, digest, final.suffix)
        return NewArtifact(kind, self._place(key), size, digest, dict(facts or {}))

    def fetch(self, file: Artifact | NewArtifact, *, verify: bool = False) -> Path:
        key = self._key_of(file.path)
        if key is None:  # published before the farm had an object store
            problem = fault_of(Path(file.path), file.size_bytes, file.sha256)
            if problem:
                raise FileLost(f"{file.path} {problem}; it is of the time before store.url was set")
            return Path(file.path)
        return self._fetch(key, file.sha256, file.size_bytes, PurePosixPath(key).suffix, verify)

    def fault(self, file: Artifact) -> str | None:
        key = self._key_of(file.path)
        if key is None:
            return fault_of(Path(file.path), file.size_bytes, file.sha256)

        def read() -> str | None:
            size, digest = 0, hashlib.sha256()
            for block in self._blocks(key):
                size += len(block)
                digest.update(block)
            if size != file.size_bytes:
                return f"has {size} bytes, {file.size_bytes} were published"
            return None if digest.hexdigest() == file.sha256 else "was changed since it was published"

        try:
            return self._patiently(read)
        except FileLost:
            return "is gone"

    def lend(self, file: Artifact, final: Path) -> NewArtifact:
        source = self._key_of(file.path)
        key = self._key(f"artifacts/{final.relative_to(self._root).as_posix()}")
        if source is None:
            self._upload(self.fetch(file), key, file.sha256, file.size_bytes)
        else:
            found = self._head(source)
            if found is None:
                raise FileLost(f"{file.path} is gone")
            if found["ContentLength"] != file.size_bytes:
                raise FileLost(f"{file.path} has {found['ContentLength']} bytes, {file.size_bytes} were published")
            self._copy(source, key, file.sha256)
        return NewArtifact(file.kind, self._place(key), file.size_bytes, file.sha256, dict(file.facts))

    def keep_inputs(self, files: Collection[tuple[str, str]]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda item: self._keep_input(Path(item[0]), item[1]), sorted(files)):
                pass

    def _keep_input(self, path: Path, sha256: str) -> None:
        key = self._key(f"inputs/{sha256}")
        found = self._head(key)
        try:
            if found is None or found["ContentLength"] != path.stat().st_size:
                self._upload(path, key, sha256, path.stat().st_size)
            elif time.time() - found["LastModified"].timestamp() > FRESH_SECONDS:
                self._copy(key, key, sha256)  # young again, so that `farm gc` spares it
        except FileLost:
            raise InputError(f"{path} was changed while it was submitted; submit it again") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None

    def input(self, path: str, sha256: str, what: str) -> Path:
        with contextlib.suppress(OSError):
            if Path(path).is_file() and sha256_of(Path(path)) == sha256:
                return Path(path)
        try:
            return self._fetch(self._key(f"inputs/{sha256}"), sha256, None, Path(path).suffix, verify=True)
        except FileLost:
            return unchanged(path, sha256, what)  # submitted before the farm had an object store; tells what is wrong

    def delete(self, place: str) -> None:
        key = self._key_of(place)
        if key is None:
            Path(place).unlink(missing_ok=True)
            return
        name, _, upload = key.partition("?upload=")
        if upload:
            with contextlib.suppress(FileLost):
                self._ask(lambda s3: s3.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload))
        else:
            self._ask(lambda s3: s3.delete_object(Bucket=self._bucket, Key=key))

    def strays(self, before: float) -> Iterator[Stray]:
        yield from local_strays(self._root, before)
        for item in self._pages("list_objects_v2", "Contents", self._key("artifacts/")):
            written, parts = item["LastModified"].timestamp(), item["Key"].split("/")
            job = next((int(part) for part in reversed(parts[:-1]) if part.isdigit()), None)
            if written <= before and job is not None:
                yield Stray(self._place(item["Key"]), item["Size"], written, job)
        for item in self._pages("list_objects_v2", "Contents", self._key("inputs/")):
            written = item["LastModified"].timestamp()
            if written <= before:
                sha256 = item["Key"].rpartition("/")[2]
                yield Stray(self._place(item["Key"]), item["Size"], written, input_sha256=sha256)
        for item in self._pages("list_multipart_uploads", "Uploads", self._key("")):
            written = item["Initiated"].timestamp()
            if written <= before:
                place = f"{self._place(item['Key'])}?upload={item['UploadId']}"
                yield Stray(place, 0, written, unfinished=True)

    def probe(self) -> None:
        key = self._key(f"probes/{secrets.token_hex(8)}")
        body = PROBE + secrets.token_bytes(16)
        self._ask(lambda s3: self._put(s3, key, body, {}))
        try:
            came = b"".join(self._patiently(lambda: list(self._blocks(key))))
        except FileLost:
            raise StoreError(f"{self._name} lost what was just written to it") from None
        if came != body:
            raise StoreError(f"{self._name} gives back other bytes than were written")
        self._ask(lambda s3: s3.delete_object(Bucket=self._bucket, Key=key))

    # Places and keys

    def _key(self, name: str) -> str:
        return f"{self._settings.prefix}{name}"

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{key or self._settings.prefix}".rstrip("/")

    def _key_of(self, place: str) -> str | None:
        """The key of a place; None for a path of this machine.  Raises StoreError for another bucket's."""
        if "://" not in place:
            return None
        start = f"s3://{self._bucket}/"
        if not place.startswith(start):
            raise StoreError(
                f"{place} lies in another bucket than store.url names; `farm db relocate` tells the ledger"
            )
        return place.removeprefix(start)

    # Travelling

    def _upload(self, path: Path, key: str, sha256: str, size: int) -> None:
        """Raises FileLost when the file is not the one that was hashed before."""
        about = {"sha256": sha256}
        if size <= PART_BYTES:
            body = path.read_bytes()
            if hashlib.sha256(body).hexdigest() != sha256:
                raise FileLost(f"{path} was changed while it was published")
            self._ask(lambda s3: self._put(s3, key, body, about))
        else:
            self._upload_parts(path, key, sha256, about)
        found = self._head(key)
        if found is None or found["ContentLength"] != size:
            raise StoreError(f"{self._name} lost a part of what was just written to it")

    def _put(self, s3: Any, key: str, body: bytes, about: Mapping[str, str]) -> None:
        s3.put_object(Bucket=self._bucket, Key=key, Body=body, Metadata=about, ChecksumSHA256=_checksum(body))

    def _upload_parts(self, path: Path, key: str, sha256: str, about: Mapping[str, str]) -> None:
        begun = self._ask(
            lambda s3: s3.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata=about, ChecksumAlgorithm="SHA256"
            )
        )
        which = {"Bucket": self._bucket, "Key": key, "UploadId": begun["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            digest = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                while body := file.read(PART_BYTES):
                    digest.update(body)
                    parts.append(self._ask(partial(_upload_part, which, len(parts) + 1, body)))
            if digest.hexdigest() != sha256:
                raise FileLost(f"{path} was changed while it was published")
            # When the answer was lost, some stores know no such upload any more: it is an object.  `_upload` looks.
            with contextlib.suppress(FileLost):
                self._ask(lambda s3: s3.complete_multipart_upload(**which, MultipartUpload={"Parts": parts}))
        except BaseException:
            with contextlib.suppress(Exception):  # the store may be away; `farm gc` does it later
                self._client().abort_multipart_upload(**which)
            raise

    def _copy(self, source: str, key: str, sha256: str) -> None:
        """Within the store, without travelling.  Amazon's limit is 5 GB, which no segment reaches."""
        self._ask(
            lambda s3: s3.copy_object(
                Bucket=self._bucket,
                Key=key,
                CopySource={"Bucket": self._bucket, "Key": source},
                MetadataDirective="REPLACE",
                Metadata={"sha256": sha256},
            )
        )

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask(lambda s3: s3.head_object(Bucket=self._bucket, Key=key))
        except FileLost:
            return None
        return found

    def _fetch(self, key: str, sha256: str, size: int | None, suffix: str, verify: bool) -> Path:
        kept = self._cache.find(sha256, suffix, size, verify=verify)
        if kept is not None:
            return kept

        def travel() -> Path:
            with self._cache.arriving() as part:
                digest = hashlib.sha256()
                with part.open("wb") as file:
                    for block in self._blocks(key):
                        digest.update(block)
                        file.write(block)
                if digest.hexdigest() != sha256 or size not in (None, part.stat().st_size):
                    raise _Spoilt
                sync(part)
                return self._cache.take(part, sha256, suffix)

        try:
            return self._patiently(travel)
        except FileLost:
            raise FileLost(f"{self._place(key)} is gone") from None
        except _Spoilt:
            raise FileLost(f"{self._place(key)} was changed since it was published") from None

    def _blocks(self, key: str) -> Iterator[bytes]:
        answer = self._client().get_object(Bucket=self._bucket, Key=key)
        with contextlib.closing(answer["Body"]) as body:
            yield from body.iter_chunks(_BLOCK)

    def _pages(self, operation: str, what: str, prefix: str) -> Iterator[dict[str, Any]]:
        def pages(s3: Any) -> list[dict[str, Any]]:
            found = s3.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=prefix)
            return [item for page in found for item in page.get(what, [])]

        return iter(self._ask(pages))

    # Asking

    def _client(self) -> Any:
        with self._lock:
            if self._client_made is None:
                given = self._settings
                keys = {}
                if given.access_key:
                    keys = {
                        "aws_access_key_id": given.access_key,
                        "aws_secret_access_key": given.secret_key.get_secret_value(),
                    }
                self._client_made = boto3.session.Session().client(
                    "s3",
                    endpoint_url=given.endpoint or None,
                    region_name=given.region,
                    config=Config(
                        connect_timeout=_CONNECT_SECONDS,
                        read_timeout=_READ_SECONDS,
                        retries={"total_max_attempts": 1, "mode": "standard"},  # `_patiently` does that
                        # Stores other than Amazon's know buckets by path; checksums that nobody asked for confuse them.
                        s3={"addressing_style": "path" if given.endpoint else "auto"},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        max_pool_connections=16,
                    ),
                    **keys,
                )
            return self._client_made

    def _ask(self, request: Callable[[Any], T]) -> T:
        return self._patiently(lambda: request(self._client()))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Repeat what may pass, as long as the settings say; translate the rest.

        Raises FileLost for an object that is not there, StoreError, and _Spoilt when every try brought other bytes.
        """
        deadline, pause = time.monotonic() + self._settings.patience_seconds, _FIRST_PAUSE
        spoilt = 0
        while True:
            try:
                return work()
            except _Spoilt:
                spoilt += 1
                if spoilt >= 3 or time.monotonic() + pause > deadline:
                    raise
                log.warning("%s: other bytes came than were published; they are fetched again", self._name)
            except (ClientError, BotoCoreError) as error:
                if _code_of(error) in _MISSING and not _is_about_the_bucket(error):
                    raise FileLost(f"there is no such object in {self._name}") from None
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise StoreError(self._sentence(error)) from None
                log.warning("%s; asked again", self._sentence(error))
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    @property
    def _name(self) -> str:
        return f"the object store at {self._settings.endpoint or 'Amazon'}"

    def _sentence(self, error: Exception) -> str:
        """What is wrong, without the keys and without what the server says, which may hold them."""
        code, name, bucket = _code_of(error), self._name, self._bucket
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return f"there are no keys for {name}; set store.access_key and store.secret_key"
        if isinstance(error, SSLError):
            return f"{name} shows a certificate that is not trusted here"
        if isinstance(error, BotoCoreError):
            return f"{name} does not answer ({type(error).__name__}); check store.endpoint and the network"
        sentences = {
            "InvalidAccessKeyId": f"{name} does not know the access key; check store.access_key",
            "SignatureDoesNotMatch": f"{name} refuses the keys; check store.secret_key",
            "AccessDenied": f"{name} does not let these keys use bucket {bucket}; check their rights",
            "403": f"{name} refuses the keys, or does not let them use bucket {bucket}",
            "NoSuchBucket": f"{name} has no bucket {bucket}; make it, or mend store.url",
            "RequestTimeTooSkewed": f"this machine's clock and that of {name} differ by minutes; set them (NTP)",
            "PermanentRedirect": f"bucket {bucket} of {name} is in another region; set store.region",
            "AuthorizationHeaderMalformed": f"bucket {bucket} of {name} is in another region; set store.region",
        }
        return sentences.get(code, f"{name} answers {code}")


def _upload_part(which: Mapping[str, str], number: int, body: bytes, s3: Any) -> dict[str, Any]:
    checksum = _checksum(body)
    done = s3.upload_part(**which, PartNumber=number, Body=body, ChecksumSHA256=checksum)
    return {"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": checksum}


def _checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _code_of(error: Exception) -> str:
    if not isinstance(error, ClientError):
        return ""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return {"301": "PermanentRedirect", "RequestExpired": "RequestTimeTooSkewed"}.get(code, code)


def _is_about_the_bucket(error: Exception) -> bool:
    return _code_of(error) == "NoSuchBucket"


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return _code_of(error) in _PASSING
    return not isinstance(error, NoCredentialsError | PartialCredentialsError | SSLError)

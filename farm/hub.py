"""The hubs that models are fetched from: Hugging Face by its library, ModelScope by its plain HTTP.

Both honour a mirror that the environment names, HF_ENDPOINT and MODELSCOPE_ENDPOINT.  What a hub says of a file, its
size and hash, is what `farm.weights` checks it against.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from farm.errors import ConfigError, NotFetched

MODELSCOPE = "https://www.modelscope.cn"
PATIENCE_SECONDS = 60.0
_BLOCK_BYTES = 1 << 20
PART = ".part"

Progress = Callable[[str, int, int], None]  # file, bytes so far, bytes of the file


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as the hub lists it."""

    path: str  # with slashes, below the repository
    size: int
    sha256: str = ""
    git_sha1: str = ""  # of git's blob, for files that a hub keeps in git itself


@dataclass(frozen=True, slots=True)
class Listing:
    repository: str
    revision: str
    licence: str  # as the hub says, or empty
    files: tuple[HubFile, ...]


class Hub(Protocol):
    name: str

    def list_files(self, repository: str, revision: str) -> Listing:
        """Raises NotFetched."""
        ...

    def fetch(self, listing: Listing, file: HubFile, folder: Path, progress: Progress) -> None:
        """Bring the file to `folder / file.path`, going on where an earlier try stopped.  Raises NotFetched."""
        ...


def open_hub(name: str) -> Hub:
    """`huggingface` or `modelscope`.  Raises ConfigError."""
    if name == "huggingface":
        return HuggingFace()
    if name == "modelscope":
        return ModelScope()
    raise ConfigError(f"there is no hub {name!r}; there are huggingface and modelscope")


def safe_path(path: str) -> str:
    """A listed path that stays below its folder.  Raises NotFetched."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise NotFetched(f"the hub lists a file {path!r}, which is no path below a folder; nothing was fetched")
    return path


class HuggingFace:
    """Through huggingface_hub, which knows listings, addresses, mirrors and tokens."""

    name = "huggingface"

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise ConfigError(
                "fetching from Hugging Face needs huggingface_hub: pip install 'talking-head-farm[models]'"
            ) from None
        self._library = huggingface_hub
        self._endpoint = os.environ.get("HF_ENDPOINT") or None

    def list_files(self, repository: str, revision: str) -> Listing:
        with _told(repository, self._endpoint or "huggingface.co"):
            info = self._library.HfApi(endpoint=self._endpoint).model_info(
                repository, revision=revision or None, files_metadata=True, timeout=PATIENCE_SECONDS
            )
        files = []
        for sibling in info.siblings or []:
            lfs: Any = sibling.lfs
            sha256 = getattr(lfs, "sha256", None) or (lfs or {}).get("sha256", "") if lfs else ""
            git_sha1 = "" if lfs else (sibling.blob_id or "")
            files.append(HubFile(safe_path(sibling.rfilename), sibling.size or 0, sha256, git_sha1))
        card = info.card_data
        licence = str(card.get("license", "")) if card else ""
        return Listing(repository, info.sha or revision or "main", licence, tuple(files))

    def fetch(self, listing: Listing, file: HubFile, folder: Path, progress: Progress) -> None:
        # The library's own download begins a file anew after it has given up once, and files here have gigabytes.
        address = self._library.hf_hub_url(
            listing.repository, file.path, revision=listing.revision, endpoint=self._endpoint
        )
        headers: dict[str, str] = self._library.utils.build_hf_headers()  # type: ignore[attr-defined]
        fetch_on(address, headers, listing.repository, file, folder, progress)


class ModelScope:
    """Through ModelScope's listing and its files' addresses."""

    name = "modelscope"

    def __init__(self) -> None:
        self._endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or MODELSCOPE).rstrip("/")

    def list_files(self, repository: str, revision: str) -> Listing:
        asked = urllib.parse.urlencode({"Revision": revision or "master", "Recursive": "true"})
        address = f"{self._endpoint}/api/v1/models/{urllib.parse.quote(repository)}/repo/files?{asked}"
        with _told(repository, self._endpoint), urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as answer:
            said = json.load(answer)
        listed = (said.get("Data") or {}).get("Files") or []
        files = tuple(
            HubFile(safe_path(item["Path"]), int(item["Size"]), str(item.get("Sha256") or ""))
            for item in listed
            if item.get("Type") != "tree"
        )
        if not files:
            raise NotFetched(f"{self._endpoint} lists no files of {repository}: {said.get('Message') or 'it is empty'}")
        return Listing(repository, revision or "master", "", files)

    def fetch(self, listing: Listing, file: HubFile, folder: Path, progress: Progress) -> None:
        name = urllib.parse.quote(file.path)
        repository = urllib.parse.quote(listing.repository)
        address = f"{self._endpoint}/models/{repository}/resolve/{listing.revision}/{name}"
        fetch_on(address, {}, listing.repository, file, folder, progress)


class _KeepTokenHome(urllib.request.HTTPRedirectHandler):
    """Files lie on other machines than their listing; a token is meant for the hub alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")
        return made


def fetch_on(
    address: str, headers: Mapping[str, str], repository: str, file: HubFile, folder: Path, progress: Progress
) -> None:
    """One file, going on behind the bytes that an earlier try left in `NAME.part`.  Raises NotFetched."""
    final = folder / file.path
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(final.name + PART)
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        have = 0
    progress(file.path, have, file.size)
    if have < file.size or not part.exists():
        asked = {**headers, **({"Range": f"bytes={have}-"} if have else {})}
        opener = urllib.request.build_opener(_KeepTokenHome)
        with (
            _told(f"{repository}/{file.path}", urllib.parse.urlsplit(address).netloc),
            opener.open(urllib.request.Request(address, headers=asked), timeout=PATIENCE_SECONDS) as answer,
        ):
            goes_on = have and answer.status == http.client.PARTIAL_CONTENT
            done = have if goes_on else 0
            with part.open("ab" if goes_on else "wb") as target:
                # read1 hands over what has come; read would throw a block away when the connection breaks in it.
                while block := answer.read1(_BLOCK_BYTES):
                    target.write(block)
                    done += len(block)
                    progress(file.path, done, file.size)
    if part.stat().st_size != file.size:
        raise NotFetched(
            f"{file.path} of {repository} was cut after {part.stat().st_size} of {file.size} bytes; pull again, it goes"
            " on from there"
        )
    part.replace(final)


@contextmanager
def _told(what: str, where: str) -> Iterator[None]:
    """What a hub's client raises, in one sentence."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise NotFetched(f"{where} answered {error.code} for {what}: {error.reason}") from None
    except http.client.IncompleteRead:
        raise NotFetched(f"{where} hung up in the middle of {what}; pull again, it goes on from there") from None
    except (OSError, ValueError, RuntimeError) as error:
        # The Hugging Face client's own errors are among these; the first line is the one for people.
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "gated" in type(error).__name__.lower():
            words = "its owner gives it to those only who asked; accept its terms on the hub and set HF_TOKEN"
        raise NotFetched(f"{what} could not be fetched from {where}: {words}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "httpx2", "httpcore2", "huggingface_hub"):
            raise
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotFetched(f"{what} could not be fetched from {where}: {words}; pull again, it goes on") from None

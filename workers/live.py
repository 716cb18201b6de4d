"""Live sessions on a worker: a client of the server talks to the warm host while batch work waits.

The server leases the host in the ledger, connects to the worker's Unix socket and shows the lease's token.  The worker
finishes its segment, serves the session, and goes on with batch work when the client closes or vanishes, the session
says nothing for too long, its lease is lost, or the worker is drained or stopped.

    the server says                                the worker answers
      open {token, model, film} + portrait           ready {}                            or  error {kind, message}
      speech + samples                               frames {sizes, seconds} + pictures  or  error, then hangs up
      close                                          closed {}
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farm.config import LiveSettings
from farm.errors import EngineError, FarmError, InputError
from farm.ledger import Ledger, live
from farm.media.jpeg import JpegEncoder
from farm.models import ModelSpec
from farm.workshop import Stopped, Workshop
from workers.heart import LiveWatch
from workers.host.parent import Host
from workers.host.wire import HungUp, Wire
from workers.preparing import make_portrait
from workers.rendering import StopWatcher

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
KNOCK_SECONDS = 10.0  # for a server to say what it wants, or to take an answer
PORTRAIT_SECONDS = 60.0  # for looking at a portrait
_HOURS = 24  # frames that a session may have; its length is bounded by time long before


class Guest:
    """A session that has leased this worker's host, and the connection to its server."""

    def __init__(self, sock: socket.socket, wire: Wire, wish: Mapping[str, Any], portrait: bytes) -> None:
        self.wire = wire
        self.wish = wish
        self.portrait = portrait
        self.watch = LiveWatch(str(wish["token"]))
        self._socket = sock

    def hear(self, why_stop: Callable[[], str | None], idle_seconds: float) -> tuple[dict[str, Any], bytes]:
        """The next message.  Raises HungUp, and Stopped with a sentence when the session must end."""
        deadline = time.monotonic() + idle_seconds
        while True:
            why = why_stop()
            if why is not None:
                raise Stopped(why)
            if select.select([self._socket], [], [], LOOK_SECONDS)[0]:
                message, blob, _ = self.wire.receive()
                return message, blob
            if time.monotonic() > deadline:
                raise Stopped(f"nothing was heard for {idle_seconds:.0f} s")

    def hung_up(self) -> bool:
        """Whether the server went away while the session waited for its turn."""
        if not select.select([self._socket], [], [], 0)[0]:
            return False
        with contextlib.suppress(OSError):
            return not self._socket.recv(1, socket.MSG_PEEK)
        return True

    def refuse(self, sentence: str, kind: str = "busy") -> None:
        with contextlib.suppress(HungUp):
            self.wire.send({"say": "error", "kind": kind, "message": sentence})
        self.wire.close()


class LiveDoor:
    """The Unix socket where sessions knock, heard by a thread of its own."""

    def __init__(
        self, ledger: Ledger, worker: str, path: Path, *, hold: Callable[[LiveWatch], None], wake: Callable[[], None]
    ) -> None:
        """Both are called in the door's thread for a guest whose lease was found in the ledger: `hold` before it waits
        for its turn, so that nobody lets go of a lease that is not held yet, and `wake` when it does."""
        self.path = path
        self._ledger = ledger
        self._worker = worker
        self._hold = hold
        self._wake = wake
        self._guests: queue.Queue[Guest] = queue.Queue()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="live-door", daemon=True)

    def open(self) -> None:
        """Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.unlink(missing_ok=True)  # of a process of this name that was killed
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)
        self._socket.listen(8)
        self._thread.start()

    def close(self) -> None:
        listening, self._socket = self._socket, None
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            self._thread.join(KNOCK_SECONDS)
            self.path.unlink(missing_ok=True)
        self.turn_away("the worker stops")

    def take(self) -> Guest | None:
        """The next guest that still waits."""
        while True:
            try:
                guest = self._guests.get_nowait()
            except queue.Empty:
                return None
            if not guest.hung_up():
                return guest
            self._forget(guest, "the client went away before its turn")

    def turn_away(self, sentence: str) -> None:
        while (guest := self.take()) is not None:
            guest.refuse(sentence)
            self._forget(guest, sentence)

    def _forget(self, guest: Guest, how: str) -> None:
        guest.wire.close()
        with contextlib.suppress(FarmError):
            live.release(self._ledger, self._worker, guest.watch.token, how)

    def _run(self) -> None:
        while (listening := self._socket) is not None:
            try:
                knocking, _ = listening.accept()
            except OSError:
                return
            knocking.settimeout(KNOCK_SECONDS)
            wire = Wire(knocking)
            try:
                wish, portrait, _ = wire.receive()
                guest = Guest(knocking, wire, wish, portrait)
                if not live.is_leased(self._ledger, self._worker, guest.watch.token):
                    guest.refuse("this session has no lease of the worker's host")
                    continue
            except (HungUp, ValueError, KeyError, FarmError) as error:
                log.warning("somebody knocked and was not understood: %s", error)
                wire.close()
                continue
            self._hold(guest.watch)
            self._guests.put(guest)
            self._wake()


class LiveStage:
    """What serves one session after the other with a worker's host."""

    def __init__(self, settings: LiveSettings, model: ModelSpec, folder: Path, stop_seconds: float) -> None:
        """`folder` holds portraits while their sessions last; a host that must stop and does not is killed."""
        self._settings = settings
        self._stop_seconds = stop_seconds
        self._model = model
        self._folder = folder
        self._workshop = Workshop()

    def clear(self) -> None:
        """Delete what a killed process of this worker left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        self._workshop.kill()
        self.clear()

    def serve(self, guest: Guest, host: Host, why_stop: Callable[[], str | None]) -> str:
        """Serve `guest` to its end and hang up.  How the session ended, in words.

        Raises what the host raised, after the guest was told; InputError is the guest's own matter.
        """
        until = time.monotonic() + 60.0 * self._settings.session_minutes

        def why() -> str | None:
            if time.monotonic() > until:
                return f"the session has lasted {self._settings.session_minutes:g} minutes"
            return why_stop()

        watcher = StopWatcher(why, host, self._stop_seconds)
        try:
            with watcher:
                return self._talk(guest, host, why)
        except HungUp:
            return "the client went away"
        except Stopped as stopped:
            guest.refuse(str(stopped), "ended")
            return str(stopped)
        except InputError as error:
            guest.refuse(str(error), "input")
            return str(error)
        except FarmError as error:
            if watcher.word is not None:
                guest.refuse(watcher.word, "ended")
            else:
                guest.refuse(str(error), "engine")
            raise
        except Exception:
            guest.refuse("the session failed; the worker's log says why", "engine")
            raise
        finally:
            guest.wire.close()

    def _talk(self, guest: Guest, host: Host, why_stop: Callable[[], str | None]) -> str:
        """Until the guest closes; what the session cost, in words."""
        film = dict(guest.wish["film"])
        if self._model.live is None or guest.wish["model"] != self._model.id or host.loaded is None:
            raise EngineError(f"this worker cannot serve a live session of {guest.wish['model']}")
        if (why := why_stop()) is not None:  # its turn came too late
            raise Stopped(why)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        total, rendering, packing = 0, 0.0, 0.0
        idle = self._settings.idle_seconds
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            film["portrait"] = str(self._look_at(guest.portrait, Path(folder), why_stop))
            film["live_frames"] = self._model.live.slice_frames
            film["facts"] = dict(self._model.live.facts)
            film["total_frames"] = _HOURS * 3600 * film["fps"][0]
            pixel_format = str(host.loaded.description["pixel_format"])
            quality = self._settings.jpeg_quality
            with (
                JpegEncoder(film["width"], film["height"], pixel_format, quality) as pictures,
                host.live(film) as speak,
            ):
                guest.wire.send({"say": "ready"})
                while True:
                    message, pcm = guest.hear(why_stop, idle)
                    if message["say"] == "close":
                        break
                    made = speak(pcm)
                    total += made.count
                    rendering += made.seconds
                    began = time.perf_counter()
                    jpegs = pictures.encode(made.pixels, made.count) if made.count else []
                    packing += time.perf_counter() - began
                    sizes = [len(jpeg) for jpeg in jpegs]
                    guest.wire.send({"say": "frames", "sizes": sizes, "seconds": made.seconds}, b"".join(jpegs))
            guest.wire.send({"say": "closed"})
        return f"closed after {total} frames, {rendering:.2f} s of rendering and {packing:.2f} s of packing"

    def _look_at(self, portrait: bytes, folder: Path, why_stop: Callable[[], str | None]) -> Path:
        given, made = folder / "given", folder / "portrait.png"
        given.write_bytes(portrait)
        looking = self._workshop.do(make_portrait, given, made, self._model.id)
        try:
            self._workshop.wait(looking, timeout_seconds=PORTRAIT_SECONDS, why_stop=why_stop)
        except InputError as error:
            # The path is ours and means nothing to the client.
            sentence = str(error).removeprefix(f"portrait {given}: ").replace(f"the portrait {given}", "the portrait")
            raise InputError(sentence) from None
        return made

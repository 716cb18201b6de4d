"""A wire between a client and a server that a test can cut, hold or spoil, once, in a chosen request."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


class Wire:
    """Passes bytes on between a port of its own and a server.  `arm` chooses what goes wrong next."""

    def __init__(self, endpoint: str) -> None:
        there = urlsplit(endpoint)
        self._there = (str(there.hostname), int(there.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.happened = threading.Event()
        self.is_down = False  # while it is, whoever comes is turned away
        self._lock = threading.Lock()
        self._armed: tuple[bytes, str] | None = None
        self._go_on = threading.Event()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def arm(self, request: bytes, what: str) -> None:
        """The next request that begins with `request` meets `what`:

        "hold body" and "hold answer" stop the bytes until `let_go`, a body in its middle and then for good.
        "spoil body" and "spoil answer" turn one bit around.
        "cut body" and "cut answer" close the connection in the middle.
        """
        with self._lock:
            self._armed = (request, what)
            self.happened.clear()
            self._go_on.clear()

    def let_go(self) -> None:
        self._go_on.set()

    def close(self) -> None:
        self.let_go()
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                if self.is_down:
                    near.close()
                    continue
                far = socket.create_connection(self._there)
            except OSError:
                return
            self._open += [near, far]
            fate = _Fate()
            for source, target, is_request in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, target, fate, is_request), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, fate: _Fate, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_request:
                    self._take_notice(data, fate)
                data = self._meet(data, fate, is_request)
                target.sendall(data)
                if fate.is_cut:
                    break
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _take_notice(self, data: bytes, fate: _Fate) -> None:
        with self._lock:
            if self._armed is not None and data.startswith(self._armed[0]):
                fate.what, self._armed = self._armed[1], None

    def _meet(self, data: bytes, fate: _Fate, is_request: bool) -> bytes:
        """What of `data` goes on."""
        verb, _, side = fate.what.partition(" ")
        if not verb or (side == "body") is not is_request:
            return data
        only_head = data.endswith(b"\r\n\r\n")
        if data.startswith(b"HTTP/1.1 100") or (only_head and (is_request or verb == "spoil")):
            return data  # the body comes with the next bytes
        fate.what = ""
        if verb == "hold":
            self.happened.set()
            self._go_on.wait()
            fate.is_cut = is_request
            return data[: len(data) // 2] if is_request else data
        self.happened.set()
        if verb == "cut":
            fate.is_cut = True
            return data[: len(data) // 2]
        return data[:-1] + bytes([data[-1] ^ 1])


class _Fate:
    """What is to happen to one connection's present request."""

    what = ""
    is_cut = False


@contextlib.contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    wire = Wire(endpoint)
    try:
        yield wire
    finally:
        wire.close()

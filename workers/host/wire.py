"""Messages between a worker and its host: a length, a JSON object, and bytes beside it where the object says so.

Read by both sides; standard library only, valid on Python 3.10.  Nothing executable ever travels.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any

_HEAD = struct.Struct("!II")  # bytes of JSON, bytes beside it
JSON_LIMIT = 16 << 20
BLOB_LIMIT = 1 << 30


class HungUp(ConnectionError):
    """The other side closed its end or died."""


class Wire:
    """One end of the conversation.  Sending is thread-safe; receiving belongs to one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any], blob: bytes = b"", fds: list[int] | None = None) -> None:
        """Raises HungUp."""
        body = json.dumps(message, separators=(",", ":")).encode()
        head = _HEAD.pack(len(body), len(blob))
        try:
            with self._sending:
                if fds:
                    socket.send_fds(self._socket, [head], fds)
                else:
                    self._socket.sendall(head)
                self._socket.sendall(body + blob)
        except OSError as error:
            raise HungUp(str(error)) from error

    def receive(self) -> tuple[dict[str, Any], bytes, list[int]]:
        """The next message, its bytes and its file descriptors.  Raises HungUp."""
        try:
            head, fds, _, _ = socket.recv_fds(self._socket, _HEAD.size, 4)
            if not head:
                raise HungUp("the other side hung up")
            head += self._exactly(_HEAD.size - len(head))
            body_size, blob_size = _HEAD.unpack(head)
            if body_size > JSON_LIMIT or blob_size > BLOB_LIMIT:
                raise HungUp(f"a message of {body_size} + {blob_size} bytes is no message")
            body = self._exactly(body_size)
            blob = self._exactly(blob_size)
        except OSError as error:
            if isinstance(error, HungUp):
                raise
            raise HungUp(str(error)) from error
        return json.loads(body), blob, list(fds)

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._socket.recv(min(size, 1 << 20))
            if not part:
                raise HungUp("the other side hung up in the middle of a message")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        # Closing alone would leave a thread that listens asleep until the other side dies.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

"""What a host renders, read from its pipe here instead of by an encoder: for checks, benches and tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from workers.host.parent import Host, Progress, Rendered

_BLOCK_BYTES = 1 << 20


def read_frames(
    host: Host,
    film: Mapping[str, Any],
    *,
    first_frame: int,
    frames: int,
    carry: bytes | None = None,
    take: Callable[[bytes], object],
    on_progress: Callable[[Progress], object] = lambda progress: None,
) -> Rendered:
    """Render a segment and give its bytes to `take`, from a thread, as they come.  Raises what `Host.render` raises."""
    reading, writing = os.pipe()

    def listen() -> None:
        while block := os.read(reading, _BLOCK_BYTES):
            take(block)

    listener = threading.Thread(target=listen, name="frame-reader")
    listener.start()
    end: Progress | Rendered | None = None
    try:
        for end in host.render(film, first_frame=first_frame, frames=frames, carry=carry, write_fd=writing):
            if isinstance(end, Progress):
                on_progress(end)
    finally:
        os.close(writing)
        listener.join()
        os.close(reading)
    assert isinstance(end, Rendered)
    return end


def render_to_bytes(
    host: Host, film: Mapping[str, Any], first_frame: int, frames: int, carry: bytes | None = None
) -> tuple[bytes, bytes]:
    """A segment's frames and the carry at their end."""
    heard: list[bytes] = []
    end = read_frames(host, film, first_frame=first_frame, frames=frames, carry=carry, take=heard.append)
    assert end.carry is not None  # nobody stopped it
    return b"".join(heard), end.carry

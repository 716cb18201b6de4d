"""The FlashTalk-compatible WebSocket: speech in, pictures out, with the warm host of a worker.

Text is JSON, binary is media: `AUDI` and 16 bit mono PCM at 16 kHz from the client, `VIDX` and JPEG pictures back.
docs/compatibility.md has the messages and what differs from OmniRT.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import struct
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse

from farm.errors import EngineError, FarmError, InputError
from farm.ledger.keys import Scope
from farm.media.sound import RATE
from farm.models import LiveSpec, ModelSpec, load_model
from farm.server.access import Caller, Gate, admit_socket
from farm.server.context import Context
from farm.server.live import LiveSession, NoHost

router = APIRouter()

SOUND, PICTURES = b"AUDI", b"VIDX"
DEFAULT_SEED = 9999
_WAITING = 4  # messages of a client that are taken in before the first of them is answered
_SEEDS = range(0, 1 << 31)
_TEXT = 10_000  # characters of a prompt


class Refused(Exception):
    """A message that cannot be served; the session, if there is one, goes on."""

    def __init__(self, code: str, sentence: str) -> None:
        self.code = code
        super().__init__(sentence)


@dataclass(frozen=True)
class Show:
    """What a connection's address asks for."""

    model: ModelSpec
    live: LiveSpec
    queue: str
    film: dict[str, Any]

    @property
    def fps(self) -> int:
        return int(self.film["fps"][0])

    @property
    def chunk_samples(self) -> int:
        return self.live.slice_frames * RATE // self.fps

    @classmethod
    def read(cls, socket: WebSocket, default_model: str) -> Show:
        """Raises InputError."""
        wish = socket.query_params
        model = load_model(wish.get("model") or default_model)
        if model.live is None:
            raise InputError(f"model {model.id} serves no live sessions")
        preset = wish.get("preset") or model.default_preset
        width, height = model.read_size(wish.get("size"))
        film = {
            "width": width,
            "height": height,
            "fps": list(model.read_fps(wish.get("fps"))),
            "settings": model.resolve(preset, {}),
        }
        return cls(model, model.live, model.queue_for(preset), film)


@router.websocket("/")
@router.websocket("/v1/avatar/flashtalk")
@router.websocket("/v1/audio2video/flashtalk")
async def flashtalk(socket: WebSocket) -> None:
    """One session at a time for each connection; the address may name model, preset, size and fps."""
    context: Context = socket.app.state.context
    try:
        caller = await admit_socket(socket, Scope.SUBMIT)
        show = Show.read(socket, context.settings.default_model)
    except HTTPException as error:
        await _deny(socket, error.status_code, str(error.detail))
    except InputError as error:
        await _deny(socket, 400, str(error))
    else:
        await socket.accept()
        await Conversation(socket, context, caller, show).run()


async def _deny(socket: WebSocket, status: int, sentence: str) -> None:
    await socket.send_denial_response(JSONResponse({"detail": sentence}, status))


class Conversation:
    """One connection: each message is answered in its turn."""

    def __init__(self, socket: WebSocket, context: Context, caller: Caller, show: Show) -> None:
        self._socket = socket
        self._context = context
        self._caller = caller
        self._show = show
        self._gate: Gate = socket.app.state.gate
        self._heard: asyncio.Queue[str | bytes] = asyncio.Queue(_WAITING)
        self._session: LiveSession | None = None

    async def run(self) -> None:
        """Until the client goes away, also while it waits for an answer."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._answer())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.shield(self._end())
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, WebSocketDisconnect):
                raise error

    async def _listen(self) -> None:
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            text: str | None = message.get("text")
            await self._heard.put(text if text is not None else message.get("bytes") or b"")

    async def _answer(self) -> None:
        while True:
            message = await self._heard.get()
            try:
                if not self._gate.may_go_on(self._caller):
                    raise Refused("too_many_messages", "Too many messages; slow down")
                if isinstance(message, str):
                    await self._control(message)
                else:
                    await self._media(message)
            except Refused as refused:
                await self._say(type="error", message=str(refused), code=refused.code)

    async def _control(self, text: str) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise Refused("bad_json", "Invalid JSON") from None
        if not isinstance(message, dict):
            raise Refused("bad_json", "Invalid JSON: a message is an object")
        kind = message.get("type")
        if kind == "init":
            await self._init(message)
        elif kind == "close":
            await self._end()
            await self._say(type="close_ok")
        elif kind == "config_update":  # nothing can be changed while a session runs
            await self._say(type="config_ok", updated={})
        else:
            raise Refused("unsupported_message", f"Unknown message type: {str(kind)[:40]}")

    async def _init(self, message: dict[str, Any]) -> None:
        portrait = _portrait(message.get("ref_image"))
        model = self._show.model
        film = {**self._show.film, "seed": _seed(message.get("seed")), "prompt": _prompt(message.get("prompt"), model)}
        await self._end()  # a second init replaces the session
        sessions: set[Conversation] = self._socket.app.state.live_sessions
        sessions -= {other for other in sessions if other.is_over}
        most = self._context.settings.live.sessions
        if not most:
            raise Refused("no_host", "This farm serves no live sessions")
        if len(sessions) >= most:
            raise Refused("busy", f"This server keeps {most} live sessions at once and has them; try again later")
        sessions.add(self)
        try:
            self._session = await LiveSession.open(
                self._context.ledger,
                self._context.settings,
                model,
                self._show.queue,
                film,
                portrait,
                self._caller.owner,
            )
        except NoHost as error:
            raise Refused("no_host", str(error)) from None
        except InputError as error:
            raise Refused("bad_image", str(error)) from None
        except (FarmError, OSError) as error:
            raise Refused("runtime_error", f"Init failed: {error}") from None
        finally:
            if self._session is None:
                sessions.discard(self)
        spec = self._show.live
        await self._say(
            type="init_ok",
            frame_num=spec.slice_frames + spec.motion_frames,
            motion_frames_num=spec.motion_frames,
            slice_len=spec.slice_frames,
            fps=self._show.fps,
            height=film["height"],
            width=film["width"],
            model=model.id,
            chunk_samples=self._show.chunk_samples,
        )

    @property
    def is_over(self) -> bool:
        """Whether the worker has ended the session and its client does not know yet."""
        return self._session is not None and self._session.ended

    async def _media(self, message: bytes) -> None:
        if self._session is None:
            raise Refused("no_session", "No active session. Send 'init' first.")
        if message[:4] != SOUND:
            raise Refused("bad_audio_magic", "Binary audio payload must start with AUDI magic.")
        wanted = 2 * self._show.chunk_samples
        if len(message) - 4 != wanted:
            sentence = f"Expected {wanted} bytes of pcm_s16le audio, got {len(message) - 4}."
            raise Refused("bad_audio_chunk", sentence)
        try:
            pictures = await self._session.speak(message[4:])
        except (FarmError, OSError) as error:
            await self._end()
            why = str(error) if isinstance(error, EngineError) else f"Generate failed: {error}"
            raise Refused("runtime_error", f"{why}. Send 'init' to begin again.") from None
        await self._socket.send_bytes(video_message(pictures))

    async def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            # Before the worker has given its host back, for which who comes next waits: it must not be told "busy".
            self._socket.app.state.live_sessions.discard(self)
            await session.close()

    async def _say(self, **message: Any) -> None:
        await self._socket.send_text(json.dumps(message))


def video_message(pictures: list[bytes]) -> bytes:
    """`VIDX`, the count, and each picture behind its length; numbers are 32 bit little endian."""
    parts = [PICTURES, struct.pack("<I", len(pictures))]
    for picture in pictures:
        parts += [struct.pack("<I", len(picture)), picture]
    return b"".join(parts)


def _portrait(given: Any) -> bytes:
    if not given or not isinstance(given, str):
        raise Refused("missing_image", "A base64 reference image is required.")
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.b64decode(given, validate=True)
    raise Refused("bad_image_base64", "Reference image must be valid base64.")


def _seed(given: Any) -> int:
    if given is None:
        return DEFAULT_SEED
    if isinstance(given, bool) or not isinstance(given, int) or given not in _SEEDS:
        raise Refused("bad_seed", f"seed must be a whole number from 0 to {_SEEDS[-1]}")
    return given


def _prompt(given: Any, model: ModelSpec) -> str:
    if given is None or not model.prompt:
        return model.default_prompt
    if not isinstance(given, str) or len(given) > _TEXT:
        raise Refused("bad_prompt", f"prompt must be a text of at most {_TEXT} characters")
    return given or model.default_prompt

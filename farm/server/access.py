"""Who may do what: keys, scopes, owners, rates, and where a browser's request may come from."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request, Security, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from farm.config import ServerSettings
from farm.errors import ConfigError
from farm.ledger import Ledger
from farm.ledger.keys import ApiKey, Scope, find_key, keys_of
from farm.server.crowd import Crowd

COOKIE = "farm_key"
REMEMBER_SECONDS = 5.0  # how long a revoked key may still open doors
BURST_SECONDS = 10.0
REFUSALS_PER_SECOND = 5.0  # of one address, before it is told to slow down
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    key_id: str
    owner: str
    scope: Scope

    @property
    def sees(self) -> str | None:
        """Whose jobs it sees; None for everybody's."""
        return None if self.scope is Scope.ADMIN else self.owner


class Rates:
    """One bucket of tokens for each name; a bucket refills at `per_second` up to ten seconds' worth."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._full = max(per_second * BURST_SECONDS, 1.0)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def give_back(self, name: str) -> None:
        """Undo one `take` that was granted."""
        with self._lock:
            tokens, at = self._buckets.get(name, (self._full, 0.0))
            self._buckets[name] = (min(self._full, tokens + 1.0), at)

    def take(self, name: str) -> bool:
        """Take one token; False when there is none."""
        now = time.monotonic()
        with self._lock:
            tokens, at = self._buckets.pop(name, (self._full, now))
            tokens = min(self._full, tokens + (now - at) * self._per_second)
            allowed = tokens >= 1.0
            self._buckets[name] = (tokens - 1.0 if allowed else tokens, now)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
        return allowed


class Gate:
    """Tells callers by their keys."""

    def __init__(self, ledger: Ledger, settings: ServerSettings, owner: str) -> None:
        """`owner` is who everybody is on an open server.  Raises ConfigError."""
        if settings.open and not is_loopback(settings.host):
            raise ConfigError(
                f"server.open: a server on {settings.host} is reached from other machines and needs keys;"
                " make one with `farm keys add`, or listen on 127.0.0.1"
            )
        self.open = settings.open
        self._ledger = ledger
        self._everybody = Caller("open", owner, Scope.ADMIN)
        self._rates = Rates(settings.requests_per_second)
        self._refusals = Rates(REFUSALS_PER_SECOND)
        self._known: dict[str, Caller] = {}
        self._known_until = 0.0
        self._lookups: Crowd[ApiKey | None] = Crowd()
        self._renewals: Crowd[dict[str, ApiKey]] = Crowd()

    async def admit(self, request: HTTPConnection, key: str | None, *, by_cookie: bool) -> Caller:
        """Who this is.  Raises HTTPException 401, 403 and 429."""
        if self.open or by_cookie:
            _check_origin(request, self.open)
        caller = self._everybody if self.open and not key else await self.find(key)
        if caller is None:
            address = request.client.host if request.client else "?"
            if not self._refusals.take(address):
                raise HTTPException(429, "Too many requests without a valid key", {"Retry-After": "5"})
            raise HTTPException(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
        if not self.may_go_on(caller):
            raise HTTPException(429, "Too many requests; slow down", {"Retry-After": "1"})
        return caller

    def may_go_on(self, caller: Caller) -> bool:
        """Count one request of a caller, or one message; False when it is one too many."""
        return self._rates.take(caller.key_id)

    def take_back(self, caller: Caller) -> None:
        """Do not count a request that `may_go_on` has counted: it is counted again elsewhere."""
        self._rates.give_back(caller.key_id)

    async def find(self, key: str | None) -> Caller | None:
        """Whose key this is; None if it is nobody's.  The answer may be REMEMBER_SECONDS old."""
        if not key:
            return None
        if time.monotonic() >= self._known_until:
            await self._renew()
        known = self._known.get(key)
        if known is not None:
            return known
        until = self._known_until
        found = await self._lookups.ask(key, partial(find_key, self._ledger, key))
        if found is None:
            return None
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        caller = Caller(found.id, found.owner, found.scope)
        if until == self._known_until:  # otherwise it would be remembered for longer than the others
            self._known[key] = caller
        return caller

    async def _renew(self) -> None:
        """Look in one reading which of the remembered keys still open doors: hundreds of callers have as many keys."""
        asked = time.monotonic()
        ids = tuple(sorted({caller.key_id for caller in self._known.values()}))
        valid = await self._renewals.ask(ids, partial(keys_of, self._ledger, ids)) if ids else {}
        if asked + REMEMBER_SECONDS > self._known_until:
            self._known = {
                key: Caller(found.id, found.owner, found.scope)
                for key, caller in self._known.items()
                if (found := valid.get(caller.key_id)) is not None
            }
            self._known_until = asked + REMEMBER_SECONDS


def is_loopback(host: str) -> bool:
    if host in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_origin(request: HTTPConnection, is_open: bool) -> None:
    """Keep other sites' pages from acting through a browser that is let in without showing a key each time."""
    host = request.headers.get("host", "")
    if is_open and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise HTTPException(403, "This farm answers only to the names of its own machine")
    # A WebSocket has no method; a browser opens one to any site, with that site's cookies.
    if request.scope.get("method") in ("GET", "HEAD", "OPTIONS"):
        return
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "This request comes from another site's page")


_header = APIKeyHeader(name="x-api-key", auto_error=False, scheme_name="x-api-key")
_bearer = HTTPBearer(auto_error=False, scheme_name="bearer")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="cookie")


async def who(
    request: Request,
    header: Annotated[str | None, Security(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> Caller:
    gate: Gate = request.app.state.gate
    shown = header or (bearer.credentials if bearer is not None else None)
    return await gate.admit(request, shown or cookie, by_cookie=shown is None and cookie is not None)


async def admit_socket(socket: WebSocket, scope: Scope) -> Caller:
    """Who opens a WebSocket; many of their clients can send a key only as the password of the address.

    Raises HTTPException 401, 403 and 429.
    """
    gate: Gate = socket.app.state.gate
    kind, _, shown = socket.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        with contextlib.suppress(ValueError):
            shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
    key = socket.headers.get("x-api-key") or (shown if kind.lower() in ("basic", "bearer") else "")
    cookie = socket.cookies.get(COOKIE)
    caller = await gate.admit(socket, key or cookie, by_cookie=not key and cookie is not None)
    if not caller.scope.allows(scope):
        raise HTTPException(403, f"This key may not do that; it needs the scope {scope}")
    return caller


def at_least(scope: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    async def check(caller: Annotated[Caller, Depends(who)]) -> Caller:
        if not caller.scope.allows(scope):
            raise HTTPException(403, f"This key may not do that; it needs the scope {scope}")
        return caller

    return check


Reader = Annotated[Caller, Depends(at_least(Scope.READ))]
Submitter = Annotated[Caller, Depends(at_least(Scope.SUBMIT))]
Admin = Annotated[Caller, Depends(at_least(Scope.ADMIN))]

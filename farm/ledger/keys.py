"""Keys of the HTTP API and requests that may be repeated.

A key is `farm_<id>_<secret>` with 256 random bits of secret, so a plain SHA-256 of it cannot be turned back; a slow
hash would only slow every request down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from farm.errors import NotFound
from farm.ledger.history import append
from farm.ledger.store import Ledger, db_now
from farm.ledger.tables import ApiKeyRow, IdempotencyRow

_KEY = re.compile(r"farm_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
REMEMBER_SECONDS = 86400.0  # how long a repeated request gets the first one's answer
ABANDONED_SECONDS = 60.0  # after which an unanswered request may be taken up again


class Scope(StrEnum):
    """What a key may do; each may also do what those before it may."""

    READ = "read"  # see its owner's jobs and films
    SUBMIT = "submit"  # upload, submit, cancel, retry
    ADMIN = "admin"  # all of that for every owner, and workers

    def allows(self, wanted: Scope) -> bool:
        return _RANK[self] >= _RANK[wanted]


_RANK = {scope: rank for rank, scope in enumerate(Scope)}


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    name: str
    owner: str
    scope: Scope
    created_at: float
    revoked_at: float | None


def add_key(ledger: Ledger, *, name: str, owner: str, scope: Scope) -> tuple[str, ApiKey]:
    """Make a key.  Returns the key itself, which is kept nowhere, and what is known of it."""
    key_id = secrets.token_hex(6)
    secret = f"farm_{key_id}_{secrets.token_urlsafe(32)}"

    def story(session: Session) -> ApiKey:
        row = ApiKeyRow(
            id=key_id,
            sha256=_digest(secret),
            name=name,
            owner=owner,
            scope=scope.value,
            created_at=session.scalar(select(db_now())) or 0.0,
            revoked_at=None,
        )
        session.add(row)
        append(session, "key_added", detail=f"{key_id} {name}: {scope} for {owner}")
        return _value(row)

    return secret, ledger.write(story)


def find_key(ledger: Ledger, secret: str) -> ApiKey | None:
    """The key that this text is, unless it is none or was revoked."""
    match = _KEY.fullmatch(secret)
    if match is None:
        return None
    with ledger.read() as session:
        row = session.get(ApiKeyRow, match[1])
        if row is None or not hmac.compare_digest(row.sha256, _digest(secret)) or row.revoked_at is not None:
            return None
        return _value(row)


def keys_of(ledger: Ledger, key_ids: Sequence[str]) -> dict[str, ApiKey]:
    """Those of these keys that were not revoked, by id."""
    with ledger.read() as session:
        rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.id.in_(key_ids), ApiKeyRow.revoked_at.is_(None)))
        return {row.id: _value(row) for row in rows}


def list_keys(ledger: Ledger) -> list[ApiKey]:
    """Every key, the revoked ones too, oldest first."""
    with ledger.read() as session:
        return [_value(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at))]


def revoke_key(ledger: Ledger, key_id: str) -> None:
    """Let a key open nothing any more.  Raises NotFound."""

    def story(session: Session) -> None:
        found = session.scalar(
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id)
            .values(revoked_at=select(db_now()).scalar_subquery())
            .returning(ApiKeyRow.id)
        )
        if found is None:
            raise NotFound(f"there is no key {key_id!r}; `farm keys list` shows those there are")
        append(session, "key_revoked", detail=key_id)

    ledger.write(story)


def _value(row: ApiKeyRow) -> ApiKey:
    return ApiKey(row.id, row.name, row.owner, Scope(row.scope), row.created_at, row.revoked_at)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Requests that may be repeated


class Conflict(Exception):
    """The same Idempotency-Key was used for another request, or its first request is still being worked on."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a repeated request is answered."""

    job_id: int | None
    batch: dict[str, Any] | None


def begin_request(ledger: Ledger, owner: str, key: str, request: bytes) -> Remembered | None:
    """Note that this request begins.  Returns the answer when it is a repetition.  Raises Conflict."""
    row_key, digest = _request_key(owner, key), hashlib.sha256(request).hexdigest()

    def story(session: Session) -> Remembered | None:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < db_now() - REMEMBER_SECONDS))
        won = session.scalar(
            ledger.insert(IdempotencyRow)
            .values(key=row_key, request_sha256=digest, job_id=None, batch=None, created_at=db_now())
            .on_conflict_do_nothing()
            .returning(IdempotencyRow.key)
        )
        if won is not None:
            return None
        row = session.get_one(IdempotencyRow, row_key)
        if row.request_sha256 != digest:
            raise Conflict("this Idempotency-Key was used for another request")
        if row.job_id is not None or row.batch is not None:
            return Remembered(row.job_id, row.batch)
        taken = session.scalar(
            update(IdempotencyRow)
            .where(IdempotencyRow.key == row_key, IdempotencyRow.created_at < db_now() - ABANDONED_SECONDS)
            .values(created_at=db_now())
            .returning(IdempotencyRow.key)
        )
        if taken is None:
            raise Conflict("the first request with this Idempotency-Key is still being worked on")
        return None

    return ledger.write(story)


def end_request(
    ledger: Ledger, owner: str, key: str, *, job_id: int | None = None, batch: dict[str, Any] | None = None
) -> None:
    """Keep the request's answer; without one, forget the request, so that it may be mended and sent again."""
    row_key = _request_key(owner, key)

    def story(session: Session) -> None:
        if job_id is None and batch is None:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.key == row_key))
        else:
            session.execute(
                update(IdempotencyRow).where(IdempotencyRow.key == row_key).values(job_id=job_id, batch=batch)
            )

    ledger.write(story)


def _request_key(owner: str, key: str) -> str:
    return _digest(f"{owner}\0{key}")

"""Shares and quotas of owners: who gets how much of the farm at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.errors import InputError, NotFound
from farm.ledger import Ledger, moves
from farm.ledger.owners import owners, set_quota, set_share
from farm.states import Continuity

from .scenes import QUEUE, TTL, claim, gets_nothing, hello, history, planned, publish, request, submit


def test_an_owner_gets_no_more_leases_than_its_quota_and_others_go_on(ledger: Ledger) -> None:
    hello(ledger)
    greedy = planned(ledger, 4, Continuity.PARALLEL, owner="greedy", priority=5)
    modest = planned(ledger, 2, Continuity.PARALLEL, owner="modest")
    set_quota(ledger, "greedy", 2)
    first = claim(ledger)
    assert [claim(ledger).job.id, claim(ledger).job.id, claim(ledger).job.id] == [greedy, modest, modest]
    assert gets_nothing(ledger)
    publish(ledger, first)
    assert claim(ledger).job.id == greedy
    assert gets_nothing(ledger)


def test_a_warm_job_does_not_pass_its_owners_quota(ledger: Ledger) -> None:
    hello(ledger)
    greedy = planned(ledger, 3, Continuity.PARALLEL, owner="greedy")
    modest = planned(ledger, 1, owner="modest")
    set_quota(ledger, "greedy", 1)
    claim(ledger)
    assert claim(ledger, warm=greedy).job.id == modest


def test_a_quota_that_is_lifted_or_lowered_takes_nothing_back(ledger: Ledger) -> None:
    hello(ledger)
    job = planned(ledger, 3, Continuity.PARALLEL, owner="ann")
    leases = [claim(ledger), claim(ledger)]
    set_quota(ledger, "ann", 1)
    assert gets_nothing(ledger)
    for lease in leases:
        moves.renew(ledger, lease, ttl_seconds=TTL, frames_now=1)
    set_quota(ledger, "ann", None)
    assert claim(ledger).job.id == job


def test_prepare_and_assemble_are_not_counted(ledger: Ledger) -> None:
    submit(ledger, request(owner="ann"), request(owner="ann"))
    set_quota(ledger, "ann", 1)
    assert claim(ledger, "cpu", "cpu").job.id != claim(ledger, "cpu", "cpu").job.id


def test_claims_at_the_same_instant_do_not_pass_a_quota_together(ledger: Ledger) -> None:
    planned(ledger, 16, Continuity.PARALLEL, owner="ann")
    set_quota(ledger, "ann", 3)
    names = [hello(ledger, f"w{n}") for n in range(8)]

    def take(name: str) -> bool:
        return moves.claim(ledger, worker=name, queue=QUEUE, device="cpu", ttl_seconds=TTL) is not None

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, names))
    assert sum(taken) == 3
    assert [(o.name, o.running, o.waiting) for o in owners(ledger)] == [("ann", 3, 13)]


def test_a_claim_that_was_too_many_leaves_no_trace(postgres: Ledger) -> None:
    job = planned(postgres, 8, Continuity.PARALLEL, owner="ann")
    set_quota(postgres, "ann", 1)
    names = [hello(postgres, f"w{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda name: moves.claim(postgres, worker=name, queue=QUEUE, device="cpu", ttl_seconds=TTL), names)
        )
    assert history(postgres, job).count("lease") == 2  # of prepare, and the one


def test_an_owner_with_twice_the_share_gets_twice_the_turns(ledger: Ledger) -> None:
    hello(ledger, "cpu", queue="cpu")
    submit(ledger, request(owner="ann"), request(owner="bob"))
    set_share(ledger, "ann", 2.0)
    for _ in range(2):
        claim(ledger, "cpu", "cpu")
    submit(ledger, *[request(owner="ann") for _ in range(12)], *[request(owner="bob") for _ in range(12)])
    turns = [claim(ledger, "cpu", "cpu").job.owner for _ in range(12)]
    assert 7 <= turns.count("ann") <= 9


def test_what_is_no_owner_share_or_quota_is_refused(ledger: Ledger) -> None:
    submit(ledger, request(owner="ann"))
    with pytest.raises(NotFound, match="there is no owner 'bob'"):
        set_quota(ledger, "bob", 1)
    with pytest.raises(InputError, match="at least 1"):
        set_quota(ledger, "ann", 0)
    with pytest.raises(InputError, match=r"from 0\.01"):
        set_share(ledger, "ann", 0.0)

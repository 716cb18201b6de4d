"""What follows an attempt without a result, by the class of its error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import (
    ConfigError,
    DeviceFault,
    EngineError,
    InputError,
    Interrupted,
    MediaError,
    NoEncoder,
    NotEnoughRoom,
    OutOfMemory,
    StoreError,
)
from farm.retry import Decision, RetryPolicy, classify, decide
from farm.states import Event, after
from farm.states import SegmentState as S

POLICY = RetryPolicy(max_errors=3, max_losses=8, base_delay_seconds=5.0, max_delay_seconds=300.0)
ERRORS: list[BaseException] = [
    InputError("no face"),
    OutOfMemory("device full"),
    DeviceFault("host died"),
    EngineError("model said no"),
    MediaError(["ffmpeg"], 1, "bad"),
    NotEnoughRoom("disk full"),
    StoreError("the object store does not answer"),
    NoEncoder("no card"),
    Interrupted("drained"),
    ConfigError("file: key"),
    ZeroDivisionError("a bug of ours"),
]


def after_error(error: BaseException, errors_before: int = 0, was_smaller: bool = False) -> Decision:
    return decide(error, errors_before=errors_before, was_smaller=was_smaller, policy=POLICY)


@pytest.mark.parametrize(
    ("error", "word"),
    list(
        zip(
            ERRORS,
            ["input", "memory", "device", "engine", "media", "room", "store", "encoder", "stop", "engine", "bug"],
            strict=True,
        )
    ),
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_error_has_one_word(error: BaseException, word: str) -> None:
    assert classify(error) == word


def test_an_input_error_fails_the_job_at_once_and_is_nobodys_strike() -> None:
    assert after_error(InputError("no face")) == Decision(Event.FAIL, "no face", "input")


@pytest.mark.parametrize("error", [EngineError("e"), MediaError(["ffmpeg"], 1, "e"), ZeroDivisionError("e")])
def test_an_engine_error_is_tried_again_after_a_pause(error: BaseException) -> None:
    decision = after_error(error)
    assert (decision.event, decision.delay_seconds) == (Event.RETRY, 5.0)
    assert decision.strike and decision.counts and not decision.replace_host and not decision.smaller


def test_a_device_fault_replaces_the_host() -> None:
    assert after_error(DeviceFault("gone")).replace_host
    assert after_error(DeviceFault("gone"), errors_before=2).replace_host


def test_out_of_memory_is_tried_once_smaller_on_a_fresh_host_and_then_fails() -> None:
    first = after_error(OutOfMemory("full"))
    assert (first.event, first.smaller, first.replace_host, first.strike) == (Event.RETRY, True, True, False)
    second = after_error(OutOfMemory("full"), errors_before=1, was_smaller=True)
    assert second.event is Event.FAIL
    assert second.reason == "full (also with the memory-saving settings)"


@pytest.mark.parametrize("error", [Interrupted("drained"), NotEnoughRoom("disk full"), StoreError("no answer")])
def test_a_stop_that_was_asked_for_costs_nothing(error: BaseException) -> None:
    decision = after_error(error, errors_before=2)
    assert decision.event is Event.INTERRUPT
    assert not (decision.counts or decision.strike or decision.delay_seconds)


def test_a_job_without_an_encoder_goes_to_another_worker_and_fails_once_none_is_left() -> None:
    asked = {"errors_before": 2, "was_smaller": False, "policy": POLICY}
    passed_on = decide(NoEncoder("no card"), others_may=True, **asked)
    assert passed_on == Decision(Event.INTERRUPT, "no card", "encoder", strike=True)
    assert decide(NoEncoder("no card"), others_may=False, **asked) == Decision(Event.FAIL, "no card", "encoder")


def test_the_last_allowed_failure_gives_up_and_says_how_often_it_was_tried() -> None:
    decision = after_error(EngineError("boom"), errors_before=2)
    assert decision.event is Event.FAIL
    assert decision.reason == "given up after 3 attempts; the last one: boom"


def test_an_error_without_words_is_named_by_its_class() -> None:
    assert after_error(KeyboardInterrupt()).reason == "KeyboardInterrupt"


@given(st.sampled_from(ERRORS), st.integers(0, 20), st.booleans())
def test_every_decision_is_a_move_of_a_leased_segment_and_ends_in_time(
    error: BaseException, errors_before: int, was_smaller: bool
) -> None:
    decision = after_error(error, errors_before, was_smaller)
    assert after(S.LEASED, decision.event) in (S.QUEUED, S.FAILED)
    assert 0 <= decision.delay_seconds <= POLICY.max_delay_seconds
    assert decision.reason
    if decision.event is Event.RETRY:
        assert decision.counts, "a retry that does not count could go on for ever"


@given(st.integers(1, 2000))
def test_delays_double_up_to_the_limit(failures: int) -> None:
    this, following = POLICY.delay_after(failures), POLICY.delay_after(failures + 1)
    assert following == min(2 * this, POLICY.max_delay_seconds)
    assert POLICY.delay_after(0) == POLICY.delay_after(1) == 5.0

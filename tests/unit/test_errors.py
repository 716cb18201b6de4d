"""The one tree of errors."""

from __future__ import annotations

import pickle

import pytest

from farm import errors
from farm.errors import FarmError, MediaError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FarmError)]


def example(kind: type[FarmError]) -> FarmError:
    return MediaError(["/usr/bin/ffmpeg", "-i", "x"], 1, "a\nbad input\n") if kind is MediaError else kind("a sentence")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_the_way_between_two_processes(kind: type[FarmError]) -> None:
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_in_the_tree_that_its_module_shows(kind: type[FarmError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__
    assert kind.exit_code in (1, 2, 3)


def test_a_media_error_says_the_tool_the_code_and_its_last_lines() -> None:
    assert str(example(MediaError)) == "ffmpeg ended with 1: a | bad input"
    assert str(MediaError(["ffmpeg"], None, "")) == "ffmpeg ran out of time: it said nothing"

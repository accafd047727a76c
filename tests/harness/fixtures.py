"""The harness as fixtures: a color, a clock, scripted servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.clock import Clock
from harness.color import Color
from harness.scripted import Play, Raw, Script
from servers.http import Uvicorn


@pytest.fixture(params=["async", "sync"])
def color(request: pytest.FixtureRequest) -> Iterator[Color]:
    """Each of the two colors; what a test gave to `closing` is closed."""
    made = Color(request.param)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """A clock that only this test moves."""
    return Clock()


@pytest.fixture(scope="module")
def _served() -> Iterator[Script]:
    script = Script()
    server = Uvicorn(script, lifespan="off")
    script.url = server.url
    yield script
    server.stop()


@pytest.fixture
def scripted(_served: Script) -> Script:
    """A scripted application under uvicorn, with nothing seen yet; `url` has no path."""
    _served.reset()
    return _served


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    """Make raw servers, `raw(answer, ...)`; all are stopped afterwards."""
    made: list[Raw] = []

    def make(*answers: bytes | Play) -> Raw:
        made.append(Raw(*answers))
        return made[-1]

    yield make
    for each in made:
        each.stop()

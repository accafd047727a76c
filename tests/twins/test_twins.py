"""Each generated sync twin is what its async source gives, and the tool that writes it refuses what cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from twins import unasync
from twins.unasync import ROOT, Twin, TwinError

PAIRS = unasync.pairs()


@pytest.mark.parametrize("twin", PAIRS, ids=lambda twin: twin.target)
def test_a_sync_twin_is_what_its_async_source_gives(twin: Twin) -> None:
    kept = (ROOT / twin.target).read_text(encoding="utf-8")
    assert kept == unasync.generate(twin), f"{twin.target}: edit {twin.source} and run `make twins`"


@pytest.mark.parametrize(
    ("of_async", "of_sync"),
    [
        ("await conn.execute(x)", "conn.execute(x)"),
        ("async with a as b:", "with a as b:"),
        ("async def go() -> AsyncIterator[int]:", "def go() -> Iterator[int]:"),
        ("async for row in rows:", "for row in rows:"),
        ("async def __aenter__(self) -> AsyncPool:", "def __enter__(self) -> Pool:"),
        ("@asynccontextmanager", "@contextmanager"),
        ("await self._client.aclose()", "self._client.close()"),
        ("AbstractAsyncContextManager[AsyncPool]", "AbstractContextManager[Pool]"),
        ("raise StopAsyncIteration", "raise StopIteration"),
        ("self._lock = asyncio.Lock()", "self._lock = threading.Lock()"),
        ("await asyncio.sleep(1)", "time.sleep(1)"),
        ("from redis.asyncio import Redis", "from redis import Redis"),
        ("from store_async import AsyncStore", "from store_sync import Store"),
        ("item = await anext(rows)", "item = next(rows)"),
        ("import asyncio\n", "import contextlib\nimport threading\nimport time\n"),
        ("row = await asyncio.to_thread(table.new_row, item, cost)", "row = table.new_row(item, cost)"),
        ("return await asyncio.to_thread(load)", "return load()"),
        ("Return an async context manager.", "Return a context manager."),
        ("# asynchronous, an await-free word, Asynchrony", "# asynchronous, an await-free word, Asynchrony"),
    ],
)
def test_the_words_of_asyncio_become_those_of_threads(of_async: str, of_sync: str) -> None:
    assert unasync.words(of_async) == of_sync


@pytest.mark.parametrize(
    ("of_async", "of_sync"),
    [
        ("Callable[[str], Awaitable[dict[str, list[int]]]]", "Callable[[str], dict[str, list[int]]]"),
        ("Coroutine[Any, Any, tuple[int, str]]", "tuple[int, str]"),
        ("Awaitable[Awaitable[int]]", "int"),
    ],
)
def test_what_is_awaited_is_returned_instead(of_async: str, of_sync: str) -> None:
    assert unasync.without_awaitables(of_async) == of_sync


def _pair(root: Path, text: str, *replace: tuple[str, str]) -> Twin:
    (root / "own_async.py").write_text(text, encoding="utf-8")
    return Twin("own_async.py", "own_sync.py", replace)


def test_imports_that_nothing_uses_any_more_go_and_the_rest_is_sorted(tmp_path: Path) -> None:
    twin = _pair(tmp_path, "import asyncio\nimport zlib\nimport json\n\nLOCK = asyncio.Lock()\nprint(json, zlib)\n")
    written = unasync.generate(twin, tmp_path)
    assert written == "import json\nimport threading\nimport zlib\n\nLOCK = threading.Lock()\nprint(json, zlib)\n"


def test_a_replacement_comes_before_the_rules(tmp_path: Path) -> None:
    twin = _pair(tmp_path, "NAME = 'await me'\n", ("await me", "call me"))
    assert unasync.generate(twin, tmp_path) == 'NAME = "call me"\n'


def test_a_replacement_that_replaces_nothing_is_an_error(tmp_path: Path) -> None:
    twin = _pair(tmp_path, "NAME = 1\n", ("no such text", "x"))
    with pytest.raises(TwinError, match=r"own_async.py: nothing to replace for 'no such text'; remove the rule"):
        unasync.generate(twin, tmp_path)


def test_a_source_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match=r"gone_async.py does not exist; correct twins.toml"):
        unasync.generate(Twin("gone_async.py", "gone_sync.py"), tmp_path)


def test_what_is_no_python_afterwards_is_an_error(tmp_path: Path) -> None:
    twin = _pair(tmp_path, "NAME = 1\n", ("NAME = 1", "NAME = ("))
    with pytest.raises(TwinError, match=r"own_sync.py:1: what the rules make of its source is no Python: .+"):
        unasync.generate(twin, tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('source = "a/x.py"\ntarget = "a/x_sync.py"', "entry 1: write source"),
        ('source = "a/x_async.py"\ntarget = "b/x_sync.py"', "entry 1: write source"),
        ('source = "a/x_async.py"\ntarget = "a/x_sync.py"\nreplaces = []', "entry 1: unknown key replaces"),
        ('source = "a/x_async.py"\ntarget = "a/x_sync.py"\nreplace = ["a", "b"]', "entry 1: write replace as a list"),
        ('source = "a/x_async.py"\ntarget = "a/x_sync.py"\nreplace = [["", "b"]]', "entry 1: write replace as a list"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_an_error(tmp_path: Path, entry: str, message: str) -> None:
    data = tmp_path / "twins.toml"
    data.write_text(f"[[twin]]\n{entry}\n", encoding="utf-8")
    with pytest.raises(TwinError, match=message):
        unasync.pairs(data)

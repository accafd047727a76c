"""Write the sync twin of a module from its async one. `make twins` writes all; a proof holds each file to its source.

The rules are those of httpcore and psycopg: the words of asyncio become the words of threads, and ruff puts the rest in
order. What is particular to a pair stands in twins.toml; a replacement there that replaces nothing is an error.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_name("twins.toml")

#: What becomes of the words of asyncio, in code, docstrings and comments, in this order.
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?m)^import asyncio$", "import contextlib\nimport threading\nimport time"),  # ruff removes what is not used
        (r"\bawait asyncio\.to_thread\(([\w.]+)(?:, )?", r"\1("),
        (r"\ban async (?=context manager|iterator|generator)", "a "),
        (r"\basync (def|with|for)\b", r"\1"),
        (r"\bawait +", ""),
        (r"\bredis\.asyncio\b", "redis"),
        (r"\basyncio\.sleep\b", "time.sleep"),
        (r"\basyncio\.(Lock|Event|Semaphore|BoundedSemaphore|Condition|Barrier)\b", r"threading.\1"),
        (r"\b(a)(iter|next)\(", r"\2("),
        (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
        (r"\bStopAsyncIteration\b", "StopIteration"),
        (r"\basync(contextmanager|_generator)\b", r"\1"),
        (r"\baclosing\b", "closing"),
        (r"\baclose\b", "close"),
        (r"\b(Abstract)?Async(?=[A-Z])", r"\1"),
        (r"\b(\w+)_async\b", r"\1_sync"),
        (r"\(async\)", "(sync)"),
    )
)


class TwinError(Exception):
    """The data file, or a source, is wrong; the message names the file and the remedy."""


@dataclass(frozen=True)
class Twin:
    """One pair: the async source, the sync target, and what has to be replaced in the source before the rules."""

    source: str
    target: str
    replace: tuple[tuple[str, str], ...] = ()


def pairs(data: Path = DATA) -> list[Twin]:
    """Read the data file; raise `TwinError` for an entry that cannot be meant."""
    found = []
    for number, entry in enumerate(tomllib.loads(data.read_text(encoding="utf-8")).get("twin", []), 1):
        where = f"{data.name}: entry {number}"
        if unknown := entry.keys() - {"source", "target", "replace"}:
            raise TwinError(f"{where}: unknown key {', '.join(sorted(unknown))}; remove it, or check its spelling")
        source, target = str(entry.get("source", "")), str(entry.get("target", ""))
        if not source.endswith("_async.py") or target != f"{source.removesuffix('_async.py')}_sync.py":
            raise TwinError(f"{where}: write source = '..._async.py' and target = '..._sync.py' of the same name")
        rules = entry.get("replace", [])
        if not all(isinstance(rule, list) and len(rule) == 2 and rule[0] for rule in rules):
            raise TwinError(f"{where}: write replace as a list of pairs, [what stands there, what is to stand there]")
        found.append(Twin(source, target, tuple((old, new) for old, new in rules)))
    return found


def generate(twin: Twin, root: Path = ROOT) -> str:
    """Return the text of the sync twin."""
    path = root / twin.source
    if not path.is_file():
        raise TwinError(f"{twin.source} does not exist; correct twins.toml")
    text = path.read_text(encoding="utf-8")
    for old, new in twin.replace:
        if old not in text:
            raise TwinError(f"{twin.source}: nothing to replace for {old!r}; remove the rule from twins.toml")
        text = text.replace(old, new)
    return _tidy(without_awaitables(words(text)), root / twin.target)


def words(text: str) -> str:
    """Apply the rules to a text."""
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def without_awaitables(text: str) -> str:
    """Turn each `Awaitable[T]` and `Coroutine[Any, Any, T]` into `T`."""
    while match := re.search(r"\b(Awaitable|Coroutine)\[", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
        inner = text[match.end() : end - 1]
        if match[1] == "Coroutine":
            inner = inner.split(",", 2)[2].strip()
        text = text[: match.start()] + inner + text[end:]
    return text


def _tidy(text: str, target: Path) -> str:
    """Remove imports that nothing uses any more, sort and format, by the rules that hold where the file stands."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        where = f"{target.name}:{error.lineno}"
        raise TwinError(f"{where}: what the rules make of its source is no Python: {error.msg}") from None
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix-only", "--quiet", "--select", "F401,I"], ["format", "--quiet"]):
        done = subprocess.run(
            [*ruff, *command, "--stdin-filename", str(target), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise TwinError(f"{target.name}: ruff cannot put it in order: {done.stderr.strip()}")
        text = done.stdout
    return text


def main() -> int:
    """Write every twin that differs from its source."""
    try:
        for twin in pairs():
            text = generate(twin)
            target = ROOT / twin.target
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                target.write_text(text, encoding="utf-8")
                print(f"wrote {twin.target}")
    except TwinError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Ask the built site's own search in a real browser: through its worker, or typed as a reader does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

QUERIES = Path(__file__).resolve().parents[1] / "site" / "queries"

# Type the whole query at once, then read the list when it has been still for three looks; `first` is the time from
# the keystroke to the first change of the list.
_TYPE = """async (query) => {
  const input = document.querySelector("[data-md-component=search-query]")
  const list = document.querySelector(".md-search-result__list")
  const meta = document.querySelector(".md-search-result__meta")
  const pause = (ms) => new Promise((done) => setTimeout(done, ms))
  const type = (text) => {
    input.focus()
    input.value = text
    input.dispatchEvent(new Event("input", { bubbles: true }))
    input.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }))
  }
  type("")
  for (let tries = 0; list.children.length && tries < 100; tries++) await pause(10)
  const begin = performance.now()
  let first = null
  const seen = new Promise((done) => {
    const watcher = new MutationObserver(() => { first ??= performance.now() - begin; watcher.disconnect(); done() })
    const box = document.querySelector(".md-search-result")
    watcher.observe(box, { childList: true, subtree: true, characterData: true })
    setTimeout(done, 2000)
  })
  type(query)
  await seen
  for (let still = 0, last = ""; still < 3; ) {
    await pause(12)
    const now = meta.textContent + list.children.length
    still = now === last ? still + 1 : 0
    last = now
  }
  const links = list.querySelectorAll(":scope > .md-search-result__item > a.md-search-result__link")
  return { first, found: [...links].map((a) => a.href) }
}"""

# The search itself: the worker that the page starts, with the index that the page gives it. Typing a query takes
# thirty times as long as its answer.
_ASK = """async (queries) => {
  const { base, search } = JSON.parse(document.getElementById("__config").textContent)
  const root = new URL(base, location)
  const worker = new Worker(new URL(search, root))
  const send = (message) => new Promise((done, failed) => {
    worker.onmessage = (event) => done(event.data)
    worker.onerror = (event) => failed(new Error(event.message))
    worker.postMessage(message)
  })
  const index = await (await fetch(new URL("search/search_index.json", root))).json()
  await send({ type: 0, data: { config: index.config, docs: index.docs, options: { suggest: true } } })
  const answers = []
  for (const query of queries) {
    const begin = performance.now()
    const answer = await send({ type: 2, data: query })
    const found = answer.data.items.map((group) => new URL(group[0].location, root).href)
    answers.push({ first: performance.now() - begin, found })
  }
  worker.terminate()
  return answers
}"""


@dataclass(frozen=True)
class Outcome:
    """Where the wanted page stands in the answer (1 is the top, 0 is nowhere), and how soon something showed."""

    query: str
    wanted: str
    rank: int
    milliseconds: float
    found: tuple[str, ...]


def queries(folder: Path = QUERIES) -> list[tuple[str, str]]:
    """Return the queries of all categories with the page that each wants."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.tsv"))]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    return [(query, wanted) for query, wanted in pairs]


def ask(page: Any, address: str, asked: list[tuple[str, str]]) -> list[Outcome]:
    """Open the site at `address` in a Playwright page and put every query to its search."""
    page.goto(address)
    answers = page.evaluate(_ASK, [query for query, _ in asked])
    return [_outcome(query, wanted, answer) for (query, wanted), answer in zip(asked, answers, strict=True)]


def type_in(page: Any, address: str, asked: list[tuple[str, str]]) -> list[Outcome]:
    """Open the site at `address` in a Playwright page and type every query into its search field."""
    page.goto(address)
    page.click("[data-md-component=search-query]")
    page.wait_for_function(
        "!/Initializ/i.test(document.querySelector('.md-search-result__meta').textContent)", timeout=20_000
    )
    return [_outcome(query, wanted, page.evaluate(_TYPE, query)) for query, wanted in asked]


def _outcome(query: str, wanted: str, answer: dict[str, Any]) -> Outcome:
    paths = [urlsplit(link).path for link in answer["found"]]
    rank = next((n for n, path in enumerate(paths, 1) if path.rstrip("/").endswith(f"/patterns/{wanted}")), 0)
    return Outcome(query, wanted, rank, answer["first"] or 0.0, tuple(paths))


def success(outcomes: list[Outcome], at: int) -> float:
    """Return the share of queries whose page stands among the first `at`."""
    return sum(0 < outcome.rank <= at for outcome in outcomes) / len(outcomes)

"""The built site in a real Chromium: what a reader does, and what must never happen while they do it."""

from __future__ import annotations

import datetime
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _catalog import read
from _catalog.model import ROOT, Pattern
from site_tools import searching

pytestmark = pytest.mark.timeout(180)
CATALOG = read.load()
PHONE = {"width": 360, "height": 740}
KINDS = {
    "the first page": "",
    "a pattern": min((p for p in CATALOG.patterns if len(p.modules) > 1), key=lambda p: len(p.modules)).url,
    "a category": f"patterns/{CATALOG.patterns[0].category}/",
    "all categories": "patterns/",
    "the finder": "find/",
    "the tags": "find/tag/",
    "about": "about/",
    "an address without a page": "no/such/page/",
}
# A visit takes two seconds. What can be read off the built HTML is proved in test_built.py for every page; the browser
# sees each kind of page and a few patterns, others every day, so that the suite does not grow with the library.
TODAY = random.Random(datetime.datetime.now(datetime.UTC).date().isoformat())
VISITED = ["", "find/", "find/tag/", "patterns/", "about/"]
VISITED += [pattern.url for pattern in TODAY.sample(CATALOG.patterns, min(8, len(CATALOG.patterns)))]


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of a fresh profile that may use the clipboard, and that saw no error and asked no other host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address.rstrip("/"))
    opened = context.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else elsewhere.append(r.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not elsewhere, f"requests left the host: {elsewhere}"
    assert not errors


def _clipboard(page: Any) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def _copies_exactly_its_files(page: Any, pattern: Pattern, site: Path) -> None:
    for module in pattern.modules:
        source = (ROOT / module).read_text(encoding="utf-8")
        page.locator(f'[data-copy$="{module}"]').click()
        page.wait_for_function(
            "(name) => document.querySelector(`[data-copy$='${name}']`).textContent === 'Copied'", arg=module
        )
        assert _clipboard(page) == source
    page.locator('[data-copy$=".md"]').click()
    page.locator('[data-copy$=".md"]', has_text="Copied").wait_for()
    assert _clipboard(page) == (site / f"{pattern.url.rstrip('/')}.md").read_text(encoding="utf-8")


def _pattern_with(modules: int) -> Pattern:
    return next(p for p in CATALOG.patterns if len(p.modules) >= modules)


def test_search_finds_what_readers_mean(page: Any, address: str) -> None:
    outcomes = searching.ask(page, address, searching.queries())
    missed = [f"{o.rank or '-'}  {o.query!r} wants {o.wanted}, got {o.found[:3]}" for o in outcomes if o.rank != 1]
    assert len(outcomes) >= 60
    assert searching.success(outcomes, 1) >= 0.90, "\n".join(missed)
    assert searching.success(outcomes, 3) >= 0.98, "\n".join(missed)


def test_what_is_typed_is_answered_as_the_search_answers_and_fast(page: Any, address: str) -> None:
    some = searching.queries()[::10]
    typed, asked = searching.type_in(page, address, some), searching.ask(page, address, some)
    for shown, answered in zip(typed, asked, strict=True):  # the list has a page twice where its title is not found
        assert list(dict.fromkeys(shown.found))[:3] == list(dict.fromkeys(answered.found))[:3]
    assert statistics.median(outcome.milliseconds for outcome in typed) < 100


def test_the_little_words_of_a_question_change_nothing(page: Any, address: str) -> None:
    bare, asked, quoted = searching.ask(
        page,
        address,
        [(query, "") for query in ("pool exhausted database", "why is a pool of the database exhausted", '"to the"')],
    )
    assert sorted(bare.found) == sorted(asked.found)
    assert len(bare.found) < len(CATALOG.patterns)
    assert searching.ask(page, address, [("the", "")])[0].found, "a query of nothing else is asked as it is"
    assert quoted.found != bare.found


def test_every_pattern_has_queries_of_its_own() -> None:
    wanted = [pattern for _, pattern in searching.queries()]
    for pattern in CATALOG.patterns:
        assert wanted.count(pattern.id) >= 3, (
            f"tests/site/queries/{pattern.category}.tsv: add three queries for {pattern.id}"
        )
    assert set(wanted) == {pattern.id for pattern in CATALOG.patterns}


def test_every_alias_finds_its_page(page: Any, address: str) -> None:
    found = searching.ask(page, address, [(alias, p.id) for p in CATALOG.current for alias in p.meta.aliases])
    missed = [(outcome.query, outcome.found[:3]) for outcome in found if not 1 <= outcome.rank <= 3]
    assert not missed
    assert searching.success(found, 1) >= 0.9


def test_a_row_of_the_table_is_one_click_from_its_page(page: Any, address: str) -> None:
    page.goto(address)
    row = page.locator(".pp-reference tbody tr").first
    title = row.locator("th").inner_text()
    row.locator("td").last.click(force=True)  # the link lies over the whole row
    assert page.locator("h1").inner_text().rstrip("¶") == title


def test_the_table_filters_by_typing_and_by_tag(page: Any, address: str) -> None:
    page.goto(address)
    rows = page.locator(".pp-reference tbody tr:visible")
    everything = rows.count()
    assert everything == len(CATALOG.current)
    box = page.get_by_label("Filter by pattern, need, error text or tag")
    box.fill("too many clients already")
    assert rows.count() == 1
    assert "1 of" in page.locator(".pp-filter [role=status]").inner_text()
    box.fill("no pattern has these words")
    assert rows.count() == 0
    box.fill("")
    tag = page.locator(".pp-filter button").first
    tag.click()
    name = tag.inner_text()
    assert rows.count() == len([p for p in CATALOG.current if name in p.meta.tags])
    assert tag.get_attribute("aria-pressed") == "true"
    tag.click()
    assert rows.count() == everything


def test_the_table_sorts_up_down_and_back(page: Any, address: str) -> None:
    page.goto(address)
    titles = page.locator(".pp-reference tbody th")
    before = titles.all_inner_texts()
    button = page.locator(".pp-reference thead button").first
    button.click()
    up = titles.all_inner_texts()
    assert up == sorted(before, key=str.casefold)
    assert page.locator(".pp-reference thead th").first.get_attribute("aria-sort") == "ascending"
    button.click()
    assert titles.all_inner_texts() == up[::-1]
    button.click()
    assert titles.all_inner_texts() == before


def test_the_table_is_whole_without_javascript(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        plain = context.new_page()
        plain.goto(address)
        assert plain.locator(".pp-reference tbody tr:visible").count() == len(CATALOG.current)
        plain.goto(address + CATALOG.patterns[0].url)
        assert plain.locator(".pp-actions a[download]:visible").count() == len(CATALOG.patterns[0].modules)
        assert plain.locator("[data-copy]:visible").count() == 0
    finally:
        context.close()


def test_the_button_on_a_block_copies_exactly_the_file(page: Any, address: str) -> None:
    pattern = CATALOG.patterns[0]
    page.goto(address + pattern.url)
    source = (ROOT / pattern.modules[0]).read_text(encoding="utf-8")
    name = pattern.modules[0].rpartition("/")[2]
    block = page.locator(".highlight", has=page.locator(".filename", has_text=name)).first
    block.hover()
    block.locator("button[data-md-type=copy], .md-clipboard, .md-code__button").first.click()
    page.wait_for_timeout(100)
    assert _clipboard(page) == source


def test_the_download_is_saved_under_its_name_and_is_the_file(page: Any, address: str) -> None:
    pattern = CATALOG.patterns[0]
    page.goto(address + pattern.url)
    with page.expect_download() as started:
        page.locator(".pp-actions a[download]").first.click()
    assert started.value.suggested_filename == pattern.modules[0].rpartition("/")[2]
    assert Path(started.value.path()).read_bytes() == (ROOT / pattern.modules[0]).read_bytes()


def test_choosing_sync_once_chooses_it_everywhere(page: Any, address: str) -> None:
    pattern = next(
        p for p in CATALOG.patterns if "async" in p.colors and any(m.endswith("_sync.py") for m in p.modules)
    )
    page.goto(address + pattern.url)
    tabs = page.locator(".tabbed-labels label", has_text=re.compile("^Sync$"))
    assert tabs.count() >= 1
    tabs.first.click()
    page.wait_for_timeout(100)
    page.reload()
    chosen = page.locator(".tabbed-set").first.locator("input:checked")
    label = page.locator(f'label[for="{chosen.get_attribute("id")}"]').inner_text()
    assert label.strip() == "Sync"


def test_the_palette_switches_and_is_remembered(page: Any, address: str) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(address)
    seen = set()
    for _ in range(3):
        page.locator("form[data-md-component=palette] label:visible").click()
        seen.add(page.evaluate("document.body.dataset.mdColorScheme"))
    assert seen == {"default", "slate"}
    while page.evaluate("document.body.dataset.mdColorMedia") != "(prefers-color-scheme: dark)":
        page.locator("form[data-md-component=palette] label:visible").click()
    page.reload()
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"


@pytest.mark.parametrize("where", VISITED)
def test_a_page_copies_exactly_its_files_and_fits_a_phone_with_readable_drawings(
    where: str, page: Any, address: str, site: Path
) -> None:
    page.set_viewport_size(PHONE)
    page.goto(address + where)
    pattern = next((pattern for pattern in CATALOG.patterns if pattern.url == where), None)
    if pattern:
        _copies_exactly_its_files(page, pattern, site)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    drawings = page.locator(".pp-diagram svg, svg.pp-plot")
    assert drawings.count() >= 1 or where not in {pattern.url for pattern in CATALOG.patterns}
    for number in range(drawings.count()):
        drawing = drawings.nth(number)
        name = drawing.get_attribute("aria-labelledby")
        assert page.locator(f'[id="{name}"]').text_content()
        frame = drawing.locator("xpath=ancestor::figure")
        assert frame.evaluate("(figure) => figure.getBoundingClientRect().width") <= PHONE["width"]
        sizes = drawing.evaluate("""(svg) => [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim())
          .map((t) => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))""")
        assert min(sizes) >= 8, "a reader with a phone cannot read this"


@pytest.mark.parametrize(
    ("kind", "scheme"), [*((kind, "light") for kind in KINDS), ("the first page", "dark"), ("a pattern", "dark")]
)
def test_no_page_has_an_accessibility_violation(kind: str, scheme: str, page: Any, address: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.goto(address + KINDS[kind])
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if scheme == "dark":  # the same page in other colors
        options["runOnly"] = ["color-contrast"]
    found = Axe().run(page, options=options)
    told = [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found.response["violations"]
        for node in violation["nodes"][:3]
    ]
    assert not told, "\n".join(told)


def test_the_printed_page_shows_both_tabs_and_no_buttons(page: Any, address: str) -> None:
    pattern = _pattern_with(2)
    page.emulate_media(media="print")
    page.goto(address + pattern.url)
    assert page.locator(".pp-actions button:visible").count() == 0
    for module in pattern.modules:
        assert page.locator(".filename", has_text=module.rpartition("/")[2]).first.is_visible()


def test_an_address_without_a_page_gets_a_way_back(page: Any, address: str) -> None:
    answer = page.goto(f"{address}no/such/page/")
    assert answer.status == 404

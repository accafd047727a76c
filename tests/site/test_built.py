"""The built site: what a page shows is the file, what it links exists, and nothing leaves the host."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import jsonschema
import pytest

from _catalog import read, search
from _catalog.badges import badge, verdict
from _catalog.model import Catalog, Pattern, Verified
from site_tools import html as built
from site_tools.figures import cold_weight

BASE = "http://127.0.0.1:8000/"
EVERY = [pattern.id for pattern in read.load().patterns]
patterns = pytest.mark.parametrize("name", EVERY)


def _pattern(catalog: Catalog, name: str) -> Pattern:
    return next(pattern for pattern in catalog.patterns if pattern.id == name)


def _html(site: Path) -> Iterator[tuple[str, built.Page]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix().removesuffix("index.html"), built.parse(path)


@patterns
def test_a_page_shows_each_module_byte_for_byte_and_once(name: str, site: Path, catalog: Catalog) -> None:
    pattern = _pattern(catalog, name)
    blocks = built.parse(site / pattern.url / "index.html").blocks
    for module in pattern.modules:
        source = (catalog.root / module).read_text(encoding="utf-8")
        assert blocks.count(source) == 1, f"{module} stands {blocks.count(source)} times on {pattern.url}"


@patterns
def test_the_download_is_the_file(name: str, site: Path, catalog: Catalog) -> None:
    for module in _pattern(catalog, name).modules:
        assert (site / module).read_bytes() == (catalog.root / module).read_bytes()


@patterns
def test_the_markdown_of_a_page_is_whole(name: str, site: Path, catalog: Catalog) -> None:
    pattern = _pattern(catalog, name)
    text = (site / f"{pattern.url.rstrip('/')}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {pattern.meta.title}\n")
    prose = re.sub(r"^```.*?^```$|^( {4})```.*?^ {4}```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "{$" not in prose
    assert "--8<--" not in prose
    for module in pattern.modules:
        lines = (catalog.root / module).read_text(encoding="utf-8").rstrip().splitlines()
        plain = "\n".join(line.strip() for line in text.splitlines())
        assert "\n".join(line.strip() for line in lines) in plain, f"{module} is not in the Markdown"
    for alias in pattern.meta.aliases:
        assert alias in text.replace("&quot;", '"').replace("&#x27;", "'").replace("&amp;", "&")


@patterns
def test_every_copy_button_names_a_file_that_is_published(name: str, site: Path, catalog: Catalog) -> None:
    pattern = _pattern(catalog, name)
    page = (site / pattern.url / "index.html").read_text(encoding="utf-8")
    named = {urljoin(BASE + pattern.url, link).removeprefix(BASE) for link in re.findall(r'data-copy="([^"]+)"', page)}
    assert named == {*pattern.modules, pattern.markdown}
    assert all((site / address).is_file() for address in named)


@patterns
def test_every_drawing_has_a_name_and_is_no_wider_than_it_says(name: str, site: Path, catalog: Catalog) -> None:
    page = (site / _pattern(catalog, name).url / "index.html").read_text(encoding="utf-8")
    drawings = re.findall(r'<svg [^>]*aria-labelledby="([^"]+)"', page)
    assert drawings, "a page shows its mechanism"
    for label in drawings:
        assert re.search(rf'<title id="{re.escape(label)}">[^<]{{20,}}</title>', page), "what a blind reader gets"


def test_every_link_on_the_site_leads_somewhere(site: Path) -> None:
    pages = dict(_html(site))
    ids = {address: set(page.ids) for address, page in pages.items()}
    broken = []
    for address, page in pages.items():
        for link in {*page.links, *page.loads}:
            target, fragment = urldefrag(urljoin(BASE + address, link))
            if not target.startswith(BASE):
                continue
            path = unquote(urlsplit(target).path).lstrip("/")
            file = site / path / "index.html" if not path or path.endswith("/") else site / path
            if address == "404.html" and not file.exists():
                continue  # its links are absolute to the address where the site is hosted
            if not file.exists():
                broken.append(f"{address}: {link}")
            elif fragment and path in ids and unquote(fragment) not in ids[path]:
                broken.append(f"{address}: {link} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_ids_are_unique_on_every_page(site: Path) -> None:
    for address, page in _html(site):
        twice = {identifier for identifier in page.ids if page.ids.count(identifier) > 1}
        assert not twice, f"{address}: {twice}"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for address, page in _html(site):
        for load in page.loads:
            assert not re.match(r"(https?:)?//", load), f"{address} loads {load}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_pattern_is_reachable_from_reference_finder_and_navigation(site: Path, catalog: Catalog) -> None:
    def targets(address: str) -> set[str]:
        page = built.parse(site / address / "index.html")
        return {urldefrag(urljoin(BASE + address, link))[0].removeprefix(BASE) for link in page.main_links}

    for pattern in catalog.patterns:
        category = f"patterns/{pattern.category}/"
        assert category in targets("patterns/")
        for address in ("", "find/", "find/tag/", "find/library/", "find/service/", category):
            assert (pattern.url in targets(address)) is not pattern.archived, (
                f"{pattern.url} and {address or 'the first page'}"
            )
    index = built.parse(site / catalog.patterns[0].url / "index.html")
    reached = {urldefrag(urljoin(BASE + catalog.patterns[0].url, link))[0].removeprefix(BASE) for link in index.links}
    assert catalog.patterns[0].url in reached


def test_the_catalogue_as_data_fits_its_published_schema(site: Path, catalog: Catalog) -> None:
    data = json.loads((site / "patterns.json").read_text(encoding="utf-8"))
    schema = json.loads((site / "patterns.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema, format_checker=jsonschema.FormatChecker())
    assert [entry["id"] for entry in data["patterns"]] == [pattern.id for pattern in catalog.patterns]
    for entry in data["patterns"]:
        for address in (*entry["modules"], entry["markdown"]):
            assert (site / address.removeprefix(BASE)).is_file(), address
    data["patterns"][0]["need"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


def test_llms_txt_lists_every_pattern_at_an_address_that_exists(site: Path, catalog: Catalog) -> None:
    listed = re.findall(r"^- \[.*?\]\((.*?)\)", (site / "llms.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len([p for p in catalog.patterns if not p.archived])
    assert all((site / address.removeprefix(BASE)).is_file() for address in listed)
    full = (site / "llms-full.txt").read_text(encoding="utf-8")
    assert all(f"# {pattern.meta.title}\n" in full for pattern in catalog.patterns if not pattern.archived)


def test_the_sitemap_lists_every_page(site: Path, catalog: Catalog) -> None:
    tree = ET.parse(site / "sitemap.xml")
    listed = {node.text for node in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")}
    assert {BASE + pattern.url for pattern in catalog.patterns} <= listed


def test_what_is_internal_is_not_published(site: Path) -> None:
    names = {path.relative_to(site).parts[0] for path in site.rglob("*")}
    assert not {name for name in names if name.startswith("_")}
    assert not list(site.rglob("*.pyc"))


def test_modules_that_belong_together_download_as_one_archive(site: Path, catalog: Catalog) -> None:
    several = [pattern for pattern in catalog.patterns if len(pattern.modules) > 1]
    assert several
    for pattern in several:
        address = pattern.archive
        assert address
        with zipfile.ZipFile(site / address) as archive:
            for module in pattern.modules:
                name = module.split("/", 2)[2]
                assert archive.read(name) == (catalog.root / module).read_bytes()


@patterns
def test_a_page_is_light_for_what_it_shows(name: str, site: Path, catalog: Catalog) -> None:
    """Two thirds of a cold page are the theme's own files; the rest is the code, which is what readers come for."""
    pattern = _pattern(catalog, name)
    html = len(gzip.compress((site / pattern.url / "index.html").read_bytes(), 6))
    assert html <= 42 * 1024
    assert cold_weight(site, pattern.url) - html <= 68 * 1024


def test_a_search_index_entry_carries_title_aliases_and_identifiers(site: Path, catalog: Catalog) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    by_place = {entry["location"]: entry for entry in index["docs"]}
    for pattern in catalog.patterns:
        entry = by_place[pattern.url]
        assert entry["tags"] == [pattern.meta.title, *pattern.meta.aliases]
        for name in search.names_of(catalog, pattern)[:5]:
            assert name in entry["text"]
        assert f"{pattern.url}#implementation" not in by_place
    assert not [place for place in by_place if place.startswith("find/")]


def test_a_badge_says_only_what_a_run_recorded(catalog: Catalog) -> None:
    bare = dataclasses.replace(catalog.patterns[0], verified=None)
    assert "run make test to verify here" in badge(bare)
    assert "pp-badge--none" in badge(bare)
    seen = Verified("2026-01-02", ("3.11.9", "3.14.1"), {"valkey": "Valkey 9"}, 7, 0, 1)
    assert verdict(seen) == "7 passed, 1 skipped on 2026-01-02 with Python 3.11.9 and Python 3.14.1, Valkey 9"
    assert "pp-badge--good" in badge(dataclasses.replace(bare, verified=seen))
    failed = dataclasses.replace(seen, failed=2)
    assert verdict(failed).startswith("2 failed")
    assert "pp-badge--bad" in badge(dataclasses.replace(bare, verified=failed))

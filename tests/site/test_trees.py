"""The catalogue runs on a tree of any size, and a broken one stops with a message that says what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from _catalog import artifacts, badges, diagrams, live, new, read, records, search
from _catalog.macros import Macros
from _catalog.model import Catalog, CatalogError
from servers._process import free_port
from site_tools import trees


def _build(root: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "STRICT": "true", "NO_MKDOCS_2_WARNING": "1"}
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(root / "site")]
    return subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.make(tmp_path_factory.mktemp("one") / "tree", 1)


@pytest.fixture
def tree(one: Path, tmp_path: Path) -> Path:
    """A tree with one pattern, to break."""
    return shutil.copytree(one, tmp_path / "tree")


def _page(root: Path) -> Path:
    return next(path for path in root.glob("docs/patterns/*/*.md") if path.name != "index.md")


def _edit(path: Path, change: Callable[[str], str]) -> int:
    """Change a file and return the first line that differs."""
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next((n for n, (old, new) in enumerate(pairs, 1) if old != new), len(after.splitlines()))


def test_an_empty_tree_builds(tmp_path: Path) -> None:
    root = trees.make(tmp_path / "tree", 0)
    result = _build(root)
    assert result.returncode == 0, result.stderr
    assert "There is no pattern here yet" in (root / "site" / "index.html").read_text(encoding="utf-8")
    assert json.loads((root / "site" / "patterns.json").read_text(encoding="utf-8"))["patterns"] == []


def test_a_tree_with_103_patterns_is_read_and_its_search_index_stays_small(tmp_path: Path) -> None:
    """`make figures` builds such a tree; here it is read, rendered and indexed."""
    catalog = read.load(trees.make(tmp_path / "tree", 103))
    assert len(catalog.current) == 103
    assert Macros(catalog, "index.md").quick_reference().count("<tr ") == 103
    assert Macros(catalog, "find/tag.md").by_tag().count("→") >= 2 * 103
    index = json.dumps(search.tune(catalog, {"docs": []}), separators=(",", ":"), ensure_ascii=False)
    assert len(gzip.compress(index.encode())) <= 40 * 1024


# What a writer gets wrong, and what the one message must say: file, line where there is one, remedy.
def _drop_key(root: Path) -> tuple[str, str]:
    _edit(_page(root), lambda text: re.sub(r"^need: .*\n", "", text, flags=re.MULTILINE))
    return ":1: need: Field required; add the key", ""


def _unknown_key(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("status: current", "status: current\nstars: 5"))
    return f":{line}: stars: Extra inputs are not permitted; remove it, or check its spelling", ""


def _bad_value(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("status: current", "status: finished"))
    return f":{line}: status: Input should be 'current' or 'archived'; it is 'finished' now", ""


def _bad_date(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: re.sub(r"^reviewed: .*$", "reviewed: yesterday", text, flags=re.MULTILINE))
    return f":{line}: reviewed: write a day that exists, as YYYY-MM-DD; it is 'yesterday' now", ""


def _impossible_date(root: Path) -> tuple[str, str]:
    _edit(_page(root), lambda text: re.sub(r"^reviewed: .*$", "reviewed: 2026-13-45", text, flags=re.MULTILINE))
    return "front matter holds an impossible value (month must be in 1..12)", "correct it"


def _bad_tag(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: re.sub(r"^tags: .*$", "tags: [Retry me, web]", text, flags=re.MULTILINE))
    message = f":{line}: tags.0: write 2 to 6 tags, each of lower-case words of letters and digits, joined by hyphens"
    return message, "it is 'Retry me' now"


def _unknown_service(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: re.sub(r"^services: .*$", "services: [oracle]", text, flags=re.MULTILINE))
    return f":{line}: services: 'oracle' has no launcher in tests/servers; there are postgresql, smtp, valkey", ""


def _not_utf8(root: Path) -> tuple[str, str]:
    page = _page(root)
    line = page.read_text(encoding="utf-8").count("\n") + 1
    page.write_bytes(page.read_bytes() + b"caf\xe9\n")
    return f":{line}: the page is not UTF-8 text; save it as UTF-8", ""


def _bad_yaml(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: re.sub(r"^need: .*$", "need: [", text, flags=re.MULTILINE))
    return f":{line + 2}: front matter is not YAML", "correct it"


def _bad_related(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("related: []", "related: [no/such]"))
    return f":{line}: related: 'no/such' is no other page; use category/slug of a page", ""


def _bad_include(root: Path) -> tuple[str, str]:
    line = _edit(
        _page(root), lambda text: re.sub(r'--8<-- "snippets/[^"]+"', '--8<-- "snippets/gone.py"', text, count=1)
    )
    return f":{line}: include of 'snippets/gone.py', which does not exist; correct the path", ""


def _bad_section(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("{#gotchas}", "{#traps}"))
    return f":{line}: section 7 must be 'gotchas', there is 'traps'; write `## Gotchas {{#gotchas}}` here", ""


def _bad_proof(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: re.sub(r'proof\("test_\w+"\)', 'proof("test_of_nothing")', text, count=1))
    return f":{line}: no test is named 'test_of_nothing'; write it in tests/patterns/", "or correct it"


def _bad_macro(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("{$ quick_start() $}", "{$ quick_strat() $}"))
    return f":{line}: 'quick_strat' is undefined", "the macros are"


def _bad_template(root: Path) -> tuple[str, str]:
    line = _edit(_page(root), lambda text: text.replace("{$ quick_start() $}", "{$ quick_start( $}"))
    return f":{line}: ", "correct the call"


def _bad_module(root: Path) -> tuple[str, str]:
    module = next(root.glob("snippets/**/*.py"))
    line = _edit(module, lambda text: text + "\ndef broken(:\n")
    return f"{module.relative_to(root).as_posix()}:{line}: the module is not Python", "correct it"


def _undeclared_import(root: Path) -> tuple[str, str]:
    module = next(root.glob("snippets/**/*.py"))
    line = _edit(module, lambda text: text + "\nimport pendulum\n")
    name = module.relative_to(root).as_posix()
    return f"{name}:{line}: imports 'pendulum', which is not declared; add its distribution to", "`make lock`"


def _no_proofs(root: Path) -> tuple[str, str]:
    for path in root.glob("tests/patterns/*/*.py"):
        path.unlink()
    return ": the pattern has no proofs; write tests/patterns/", ""


def _no_text_alternative(root: Path) -> tuple[str, str]:
    fence = "{#when-to-use-it}\n\n```mermaid\nflowchart LR\n  Q --> Z\n```\n"
    line = _edit(_page(root), lambda text: text.replace("{#when-to-use-it}\n", fence))
    return f":{line}: the diagram has no text alternative", ""


def _bad_diagram(root: Path) -> tuple[str, str]:
    fence = '{#when-to-use-it}\n\n```mermaid {title="What it shows"}\nflowchartt LR\n  Q --> Z\n```\n'
    line = _edit(_page(root), lambda text: text.replace("{#when-to-use-it}\n", fence))
    return f":{line}: Mermaid cannot draw this", "correct the diagram"


def _bad_link(root: Path) -> tuple[str, str]:
    _edit(_page(root), lambda text: text.replace("{#when-to-use-it}\n", "{#when-to-use-it}\n\n[x](../no/such.md)\n"))
    return "contains a link '../no/such.md'", "is not found"


def _bad_identifier(root: Path) -> tuple[str, str]:
    _edit(_page(root), lambda text: re.sub(r"^::: \w+", "::: no_such_module", text, count=1, flags=re.MULTILINE))
    return "no_such_module", ""


READ = [_bad_date, _impossible_date, _bad_tag, _unknown_service, _not_utf8]
READ += [_drop_key, _unknown_key, _bad_value, _bad_yaml, _bad_related, _bad_include, _bad_section, _bad_module]
READ += [_undeclared_import, _no_proofs]
BUILT = [_bad_proof, _bad_macro, _bad_template, _no_text_alternative, _bad_diagram, _bad_link]
BUILT += [_bad_identifier]


@pytest.mark.parametrize("breakage", READ, ids=lambda call: call.__name__.strip("_"))
def test_a_mistake_in_the_catalogue_is_told_in_one_line(
    tree: Path, breakage: Callable[[Path], tuple[str, str]]
) -> None:
    message, remedy = breakage(tree)
    with pytest.raises(CatalogError) as caught:
        read.load(tree)
    (problem,) = (p for p in caught.value.problems if message in p and remedy in p)
    if message.startswith(":"):
        assert problem.startswith(f"docs/{_page(tree).relative_to(tree / 'docs').as_posix()}{message}")


@pytest.mark.parametrize("breakage", BUILT, ids=lambda call: call.__name__.strip("_"))
def test_a_mistake_stops_the_build_with_one_message(tree: Path, breakage: Callable[[Path], tuple[str, str]]) -> None:
    message, remedy = breakage(tree)
    result = _build(tree)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert message in output, output
    assert remedy in output
    assert "Traceback" not in output
    if message.startswith(":"):
        assert f"docs/{_page(tree).relative_to(tree / 'docs').as_posix()}{message}" in output


def test_several_mistakes_are_told_at_once(tree: Path) -> None:
    _drop_key(tree)
    _bad_include(tree)
    with pytest.raises(CatalogError) as caught:
        read.load(tree)
    assert len(caught.value.problems) == 1  # an invalid page is not read further ...
    _edit(_page(tree), lambda text: text.replace("status: current", "need: I need it.\nstatus: current"))
    _edit(_page(tree), lambda text: text.replace("related: []", "related: [no/such]"))
    with pytest.raises(CatalogError) as caught:
        read.load(tree)
    assert len(caught.value.problems) == 2  # ... a valid one is told everything


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.make(tmp_path_factory.mktemp("two") / "tree", 3)


@pytest.fixture
def pair(two: Path, tmp_path: Path) -> list[Path]:
    """The pages of a tree with three patterns, to break what is between them."""
    tree = shutil.copytree(two, tmp_path / "tree")
    return sorted(path for path in tree.glob("docs/patterns/*/*.md") if path.name != "index.md")


def test_a_tag_that_is_almost_another_is_told_with_the_other(pair: list[Path]) -> None:
    for page, tags in zip(pair, ("[webhook, shop]", "[webhook, shop]", "[webhok, shop]"), strict=True):
        _edit(page, lambda text, tags=tags: re.sub(r"^tags: .*$", f"tags: {tags}", text, flags=re.MULTILINE))  # type: ignore[misc]
    root = pair[0].parents[3]
    with pytest.raises(CatalogError) as caught:
        read.load(root)
    (problem,) = caught.value.problems
    where = f"docs/{pair[2].relative_to(root / 'docs').as_posix()}:6"
    assert problem == f"{where}: tags: no other page has 'webhok'; did you mean 'webhook'?"


def test_an_alias_of_another_page_is_told_with_both_pages(pair: list[Path]) -> None:
    root = pair[0].parents[3]
    first, second = (pattern for pattern in read.load(root).patterns[:2])
    alias = first.meta.aliases[0]
    line = _edit(
        root / "docs" / second.src,
        lambda text: text.replace("aliases:\n", f"aliases:\n  - {json.dumps(alias.upper())}\n"),
    )
    with pytest.raises(CatalogError) as caught:
        read.load(root)
    (problem,) = caught.value.problems
    assert problem.startswith(f"docs/{second.src}:{line}: aliases: {alias.upper()!r} is an alias of docs/{first.src}")


def test_a_new_pattern_is_valid_and_says_what_to_write(tree: Path) -> None:
    category = _page(tree).parent.name
    written = new.start(f"{category}/brand-new", tree)
    assert len(written) == 4
    assert all("TODO" in path.read_text(encoding="utf-8") for path in written)
    assert [p.id for p in read.load(tree).patterns if p.slug == "brand-new"] == [f"{category}/brand-new"]


def test_a_new_pattern_brings_its_category_when_there_is_none(tree: Path) -> None:
    written = [path.relative_to(tree).as_posix() for path in new.start("brand-new/first-one", tree)]
    assert "docs/patterns/brand-new/index.md" in written
    assert "tests/site/queries/brand-new.tsv" in written
    found = {category.name: category for category in read.load(tree).categories}
    assert [pattern.slug for pattern in found["brand-new"].patterns] == ["first-one"]
    assert max(category.meta.order for category in found.values()) == found["brand-new"].meta.order


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "write category/slug"),
        ("brand-new", "write category/slug"),
        ("{category}/Brand_New", "write category/slug"),
        ("{category}/../../../etc", "write category/slug"),
        ("{category}/retry", "is one word, and a module retry.py collides easily; write two"),
        ("{category}/pydantic-settings", "would hide an installed package"),
        ("{id}", "exists already"),
    ],
)
def test_a_bad_or_existing_name_starts_nothing(tree: Path, name: str, why: str) -> None:
    pattern = read.load(tree).patterns[0]
    before = sorted(tree.rglob("*"))
    names = {"category": pattern.category, "id": pattern.id}
    with pytest.raises(CatalogError, match=re.escape(why.format(**names))):
        new.start(name.format(**names), tree)
    assert sorted(tree.rglob("*")) == before


def test_an_archived_pattern_keeps_its_page_leaves_the_tables_and_a_moved_one_leaves_a_redirect(tree: Path) -> None:
    page = _page(tree)
    _edit(page, lambda text: text.replace("status: current", "status: archived"))
    url = page.relative_to(tree / "docs").as_posix().removesuffix(".md")
    _edit(tree / "mkdocs.yml", lambda text: text.replace("redirects: {}", f"redirects: {{old/place: {url}}}"))
    result = _build(tree)
    assert result.returncode == 0, result.stderr
    site = tree / "site"
    assert "no longer kept up to date" in (site / url / "index.html").read_text(encoding="utf-8")
    assert url not in (site / "index.html").read_text(encoding="utf-8")
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert not [entry for entry in index["docs"] if entry["location"].startswith(url)]
    assert f'content="0; url=../../{url}/"' in (site / "old" / "place" / "index.html").read_text(encoding="utf-8")
    catalog = read.load(tree)
    with pytest.raises(CatalogError, match=r"extra\.redirects: 'no/where' is no page of the site"):
        artifacts.write(catalog, site, "", {"elsewhere": "no/where"})
    with pytest.raises(CatalogError, match=f"extra.redirects: '{url}' is still a page"):
        artifacts.write(catalog, site, "", {url: "about"})


def _record(root: Path, failed: int = 0) -> None:
    """Record a run of the first pattern as it stands now."""
    pattern = read.load(root).patterns[0]
    found = records.Sources(root).fingerprint(pattern)
    result = records.Result(found, "2026-01-02", passed=3, failed=failed, skipped=0)
    records.save(root, records.Run("3.11.9", "linux", {pattern.id: result}))


def test_a_recorded_run_counts_only_for_what_it_ran(tree: Path) -> None:
    pattern = read.load(tree).patterns[0]
    assert pattern.verified is None
    _record(tree)
    (tree / ".verified" / "3.12.1-linux.json").write_text("{", encoding="utf-8")
    (tree / ".verified" / "3.13.1-linux.json").write_text('{"python": "3.13.1", "patterns": []}', encoding="utf-8")
    seen = read.load(tree).patterns[0].verified
    assert seen is not None
    assert (seen.passed, seen.pythons, seen.date) == (3, ("3.11.9",), "2026-01-02")


@pytest.mark.parametrize(
    "file",
    [
        "{page}",
        "{module}",
        "{proof}",
        "tests/patterns/{folder}/{stem}_kit.py",
        "tests/patterns/{folder}/{stem}_app.py",
        "tests/harness/clock.py",
        "tests/servers/valkey.py",
        "tests/conftest.py",
        "requirements.txt",
        "pyproject.toml",
    ],
)
def test_a_record_ends_with_the_first_edit_of_anything_that_a_proof_reads(tree: Path, file: str) -> None:
    pattern = read.load(tree).patterns[0]
    folder, stem = pattern.category.replace("-", "_"), pattern.slug.replace("-", "_")
    beside = tree / "tests" / "patterns" / folder
    (beside / f"{stem}_kit.py").write_text("PORT = 1\n", encoding="utf-8")
    (beside / f"{stem}_app.py").write_text("PORT = 1\n", encoding="utf-8")  # a process loads it by its name
    _record(tree)
    assert read.load(tree).patterns[0].verified is not None
    names = {"page": f"docs/{pattern.src}", "module": pattern.modules[0], "proof": pattern.proof_files[0]}
    path = tree / file.format(**names, folder=folder, stem=stem)
    path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    assert read.load(tree).patterns[0].verified is None


def test_a_record_ends_with_an_edit_of_what_an_import_of_an_import_reads(tree: Path) -> None:
    pattern = read.load(tree).patterns[0]
    (tree / "tests" / "patterns" / "shared.py").write_text("PORT = 1\n", encoding="utf-8")
    (tree / "tests" / "patterns" / "between.py").write_text(
        "from patterns import (  # two steps away\n    shared as other,\n)\n", encoding="utf-8"
    )
    _edit(tree / pattern.proof_files[0], lambda text: text + "\nfrom patterns.between import other\n")
    assert "tests/patterns/shared.py" in records.Sources(tree).files_of(read.load(tree).patterns[0])


def test_what_no_green_run_covers_is_named_as_unproved(tree: Path) -> None:
    def unproved(python: str = "3.11.9") -> list[str]:
        return [pattern.id for pattern in records.unproved(read.load(tree), python, "linux")]

    name = read.load(tree).patterns[0].id
    assert unproved() == [name]
    _record(tree)
    assert unproved() == []
    assert unproved("3.14.0") == [name], "another Python proves nothing for this one"
    _record(tree, failed=1)
    assert unproved() == [name], "a red run is no proof"


def test_a_later_run_keeps_the_records_of_patterns_that_it_did_not_run(tree: Path) -> None:
    _record(tree)
    other = records.Result(fingerprint="x", date="2026-02-03", passed=1, failed=0, skipped=0)
    records.save(tree, records.Run("3.11.9", "linux", {"no/other": other}))
    (run,) = records.load(tree)
    assert {name: result.date for name, result in run.results.items()} == {
        read.load(tree).patterns[0].id: "2026-01-02",  # not the day of the run that left it out
        "no/other": "2026-02-03",
    }


def test_badges_of_built_pages_follow_the_records(tree: Path, tmp_path: Path) -> None:
    catalog = read.load(tree)
    page = tmp_path / "index.html"
    page.write_text(f"<p>{badges.badge(catalog.patterns[0])} and the rest</p>", encoding="utf-8")
    _record(tree)
    assert badges.refresh(read.load(tree), tmp_path) == [page]
    assert "3 passed on 2026-01-02 with Python 3.11.9</span> and the rest" in page.read_text(encoding="utf-8")
    assert "pp-badge--good" in page.read_text(encoding="utf-8")
    assert badges.refresh(read.load(tree), tmp_path) == []


def test_diagrams_are_drawn_once_without_colors_or_leftovers(tmp_path: Path) -> None:
    page = tmp_path / "patterns" / "a" / "b.md"
    page.parent.mkdir(parents=True)
    page.write_text('```mermaid {title="What it shows"}\nflowchart LR\n  A[one] --> B[two]\n```\n', encoding="utf-8")
    (fence,) = diagrams.fences(tmp_path)
    assert fence.kept == tmp_path / "_diagrams" / "a" / "b.1.svg"
    drawn = diagrams.svg_of(fence)
    assert "one" in drawn
    assert "<style" not in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    fence.kept.write_text(f"<!-- {fence.key} -->\n<svg>kept</svg>\n", encoding="utf-8")
    assert diagrams.svg_of(fence) == "<svg>kept</svg>"
    assert diagrams.refresh(tmp_path) == (0, 0)
    page.write_text(page.read_text(encoding="utf-8").replace("one", "three"), encoding="utf-8")
    (tmp_path / "_diagrams" / "a" / "gone.1.svg").write_text("<svg/>", encoding="utf-8")
    assert diagrams.refresh(tmp_path) == (1, 1)
    assert "three" in fence.kept.read_text(encoding="utf-8")


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


def _wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 40
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _serve(tree: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(tree / "docs" / "_catalog"), "serve", f"127.0.0.1:{port}"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    env.pop("CI", None)
    with log.open("w") as output:
        return subprocess.Popen(argv, cwd=tree, env=env, stdout=output, stderr=output)


@pytest.mark.skipif(os.name == "nt", reason="the server is ended with SIGINT, which Windows does not deliver")
def test_the_live_server_shows_edits_mistakes_and_new_records(tree: Path, tmp_path: Path) -> None:
    page = _page(tree)
    url = page.relative_to(tree / "docs").as_posix().removesuffix(".md") + "/"
    port, log = free_port(), tmp_path / "log"
    address = f"http://127.0.0.1:{port}/{url}"
    module = next(tree.glob("snippets/**/[!_]*.py"))
    whole = module.read_text(encoding="utf-8")
    module.write_text(whole + "\ndef broken(:\n", encoding="utf-8")  # it begins with a mistake, and waits
    process = _serve(tree, port, log)
    try:
        _wait_for(lambda: "the module is not Python" in _get(address), process, log)
        module.write_text(whole, encoding="utf-8")
        _wait_for(lambda: "When to use it" in _get(address), process, log)
        assert "run make test to verify here" in _get(address)
        _record(tree)
        _wait_for(lambda: "3 passed on 2026-01-02" in _get(address), process, log)
        _edit(page, lambda text: text.replace("{#when-to-use-it}\n", "{#when-to-use-it}\n\nFreshly edited.\n", 1))
        _wait_for(lambda: "Freshly edited." in _get(address), process, log)
        module.write_text(whole + "\ndef broken(:\n", encoding="utf-8")
        _wait_for(lambda: "the module is not Python" in _get(address), process, log)
        assert "the module is not Python" in _get(f"http://127.0.0.1:{port}/find/"), "no page waits"
        module.write_text(whole + "\n# mended\n", encoding="utf-8")
        _wait_for(lambda: "# mended" in _get(address), process, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    said = log.read_text()
    assert "Traceback" not in said
    assert len(said.splitlines()) < 40, "it says more than is of use"


def test_an_address_that_cannot_be_served_on_names_the_remedy(tree: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = _serve(tree, port, tmp_path / "log")
        assert process.wait(30) == 1
    remedy = f"choose another: make serve ADDR=127.0.0.1:{port + 1}"
    assert f"127.0.0.1:{port} cannot be served on (Address already in use); {remedy}" in (tmp_path / "log").read_text()
    with pytest.raises(CatalogError, match="ADDR='8000' is no address"):
        live.serve("8000")


def test_the_search_index_of_a_site_built_by_something_else_is_tuned_too(catalog: Catalog) -> None:
    pattern = catalog.patterns[0]
    docs = [
        {"location": pattern.url, "title": "T", "text": "<p>x</p>"},
        {"location": f"{pattern.url}#implementation", "title": "I", "text": "code"},
        {"location": "find/tag/", "title": "F", "text": "everything"},
        {"location": "about/teams/", "title": "A", "text": "teams"},
    ]
    tuned = search.tune(catalog, {"config": {}, "docs": docs})
    places = [entry["location"] for entry in tuned["docs"]]
    assert places[:3] == ["about/teams/", pattern.url, f"{pattern.url}#gotchas"]
    assert "find/tag/" not in places
    for entry in tuned["docs"]:
        assert not re.search(r"```|\{\$|\]\(", entry["text"]), entry

"""The live server: the site, reloaded on every edit. While something is broken, the browser shows what and where.

MkDocs' own server keeps a browser waiting until an error is mended, and builds every page for each edit.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException
from mkdocs.livereload import LiveReloadServer

from _catalog import records
from _catalog.model import ROOT, Catalog, CatalogError
from _catalog.templating import filled

_SERVING = "PROVEN_PATTERNS_LIVE"


def is_serving() -> bool:
    """Tell whether a live server builds the site."""
    return bool(os.environ.get(_SERVING))


def forget_stale(catalog: Catalog, site: Path) -> None:
    """Remove built pages that an edit has made stale, so that those are built again and no others.

    MkDocs compares a page with its source only. A page here shows modules, proofs and measurements too, and pages
    that list patterns show all front matter. Badges are kept true without that, see `badges.refresh`.
    """
    docs = catalog.root / "docs"
    shared = [catalog.root / "mkdocs.yml", *(docs / "_catalog").rglob("*.*"), *(docs / "_theme").rglob("*.*")]
    newest = max(path.stat().st_mtime for path in shared)
    for pattern in catalog.patterns:
        shown = [catalog.root / name for name in (*pattern.modules, *pattern.shown, *pattern.proof_files)]
        shown += (docs / "_measured" / pattern.category).glob(f"{pattern.slug}.*")
        built = site / pattern.url / "index.html"
        if built.is_file() and built.stat().st_mtime < max(newest, *(path.stat().st_mtime for path in shown)):
            built.unlink()
    listing = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {p.src for p in catalog.patterns}
    for src in listing:
        (site / src).with_suffix("").joinpath("index.html").unlink(missing_ok=True)
        (site / src).with_suffix(".html").unlink(missing_ok=True)


def serve(address: str) -> None:
    """Serve the site on `host:port` until Ctrl-C; raise `CatalogError` when that cannot be had."""
    host, _, number = address.rpartition(":")
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise CatalogError([f"ADDR={address!r} is no address; write ADDR=127.0.0.1:8000"])
    _check_port(host, int(number))
    os.environ[_SERVING] = "1"
    os.chdir(ROOT)
    (ROOT / records.FOLDER).mkdir(exist_ok=True)  # a record that a run of the tests leaves is watched too
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("mkdocs.livereload").setLevel(logging.ERROR)  # the browser shows what it was answered
    signal.signal(signal.SIGTERM, _stop)
    folder = tempfile.mkdtemp(prefix="proven-patterns-")
    server = _Server(host, int(number), folder)
    try:
        server.run()
    except KeyboardInterrupt:
        print("Stopped.", flush=True)  # noqa: T201
    finally:
        server.shutdown()
        server.config.plugins.on_shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class _Server(LiveReloadServer):
    """MkDocs' server, with a page of its own for whatever is broken."""

    def __init__(self, host: str, port: int, folder: str) -> None:
        super().__init__(self._build_site, host, port, folder)
        self.problems = ""
        self.folder = folder
        self.error_handler = self._error_page
        self.config: Any = self._read_config()
        self.config.plugins.on_startup(command="serve", dirty=True)

    def run(self) -> None:
        """Build, serve, and build again after each edit."""
        self._build_site(first=True)
        for path in (self.config.docs_dir, self.config.config_file_path, *self.config.watch, ROOT / records.FOLDER):
            self.watch(str(path))
        print(f"Serving on {self.url} (Ctrl-C stops)", flush=True)  # noqa: T201
        self.serve()  # type: ignore[no-untyped-call]

    def serve_request(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Answer a request; while something is broken, every page is the page that says so."""
        if self.problems and not environ["PATH_INFO"].startswith("/livereload/"):
            body = filled("broken", problems=self.problems).encode()
            start_response("503 Service Unavailable", [("Content-Type", "text/html; charset=utf-8")])
            return [body]
        return super().serve_request(environ, start_response)

    def _read_config(self) -> Any:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=self.folder)
        config.site_url = self.url
        return config

    def _build_site(self, *, first: bool = False) -> None:
        begin = time.monotonic()
        try:
            self.config = self.config if first else self._read_config()
            build(self.config, serve_url=self.url, dirty=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it is, the server goes on and shows it
            if not isinstance(error, MkDocsException | SystemExit):
                traceback.print_exc()
            self.problems = str(error) or type(error).__name__
            print(f"{self.problems}\nWaiting until that is mended ...", file=sys.stderr, flush=True)  # noqa: T201
        else:
            self.problems = ""
            print(f"Built in {time.monotonic() - begin:.1f} s", flush=True)  # noqa: T201

    def _error_page(self, code: int) -> bytes | None:
        page = Path(self.folder, f"{code}.html")
        return page.read_bytes() if page.is_file() else None


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"choose another: make serve ADDR={host}:{port + 1}"
            raise CatalogError([f"{host}:{port} cannot be served on ({error.strerror}); {remedy}"]) from None


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

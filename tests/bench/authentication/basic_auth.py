"""A hundred issues from a Jira on loopback: this client against the jira library."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from basic_client import JiraClient
from bench.kit import Table, compare, version

jira: Any = importlib.import_module("jira")  # only where benchmarks run, not where types are checked

ISSUE = {
    "expand": "operations,versionedRepresentations,editmeta",
    "fields": {
        "summary": "Something is wrong with the something",
        "status": {"name": "Open", "id": "1", "statusCategory": {"id": 2, "key": "new", "name": "To Do"}},
        "assignee": {"accountId": "5b10a2844c20165700ede21g", "displayName": "Ada", "active": True},
        "priority": {"id": "3", "name": "Medium"},
        "labels": ["one", "two", "three"],
        "created": "2026-11-01T10:00:00.000+0000",
        "description": None,
    },
}
ISSUES = [ISSUE | {"id": str(n), "key": f"X-{n}", "self": f"http://127.0.0.1/rest/api/3/issue/{n}"} for n in range(100)]
BODY = json.dumps({"issues": ISSUES, "isLast": True}).encode()
INFO = json.dumps({"deploymentType": "Cloud", "version": "1001.0.0", "versionNumbers": [1001, 0, 0]}).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers each search with the same hundred issues, as Jira Cloud would."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 20, True  # or a kept connection waits 40 ms for each answer

    def do_GET(self) -> None:
        """Answer."""
        body = INFO if self.path.endswith("/serverInfo") else BODY
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def tables() -> list[Table]:
    """Measure one search, its answer as JSON and as the library's objects."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, token = f"http://127.0.0.1:{server.server_port}", os.urandom(16).hex()
    ours = JiraClient(url, "ada@example.com", token)
    theirs = jira.JIRA(server=url, basic_auth=("ada@example.com", token), options={"rest_api_version": "3"})

    def by_library() -> Any:
        return theirs.enhanced_search_issues("project = X", maxResults=100)

    subjects: dict[str, Callable[[], Any]] = {
        "this module, JSON": lambda: ours.get("/search/jql", jql="project = X", maxResults=100)["issues"],
        f"{version('jira')}, objects": by_library,
        f"{version('jira')}, JSON": lambda: theirs.enhanced_search_issues(
            "project = X", maxResults=100, json_result=True
        )["issues"],
    }
    try:
        sizes = {name: len(call()) for name, call in subjects.items()}
        if set(sizes.values()) != {100}:
            raise RuntimeError(f"not a hundred issues: {sizes}")
        seconds = compare(subjects, calls=10, rounds=11)
    finally:
        ours.close()
        server.shutdown()
        server.server_close()
    base = "this module, JSON"
    rows = [[name, f"{spent * 1e3:.1f} ms", f"{spent / seconds[base]:.2f} ×"] for name, spent in seconds.items()]
    return [
        Table(
            name="search",
            columns=("", "100 issues", "ratio"),
            rows=rows,
            note=f"Median of one search on a kept connection, an answer of {len(BODY) / 1024:.0f} KiB, from a server "
            "on loopback in the same process. The library makes an object of each issue.",
        )
    ]

"""The catalogue as a command: `python docs/_catalog COMMAND`.

new CATEGORY/SLUG       start a pattern, and its category if there is none
proofs CATEGORY/SLUG    name the files that prove a pattern
unproved                name the files that prove what no recorded green run of this Python covers
serve HOST:PORT         show the site, reloaded on every edit
diagrams                draw the diagrams that are missing, remove those that no page shows
check                   read and validate everything
artifacts SITE URL      write the files beside the pages of a site that was built by something else
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from _catalog import read, records  # noqa: E402
from _catalog.model import ROOT, CatalogError  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    match arguments:
        case ["new", name]:
            from _catalog import new

            for path in new.start(name):
                _say(f"wrote {path.relative_to(ROOT).as_posix()}")
            _say(f"Replace each TODO; `make test PATTERN={name}` names all that are left.")
        case ["proofs", name]:
            _say("\n".join(read.load().by_id(name).proof_files))
        case ["unproved"]:
            found = records.unproved(read.load(), platform.python_version())
            _say("\n".join(file for pattern in found for file in pattern.proof_files))
        case ["serve", address]:
            from _catalog import live

            live.serve(address)
        case ["diagrams"]:
            from _catalog import diagrams

            drawn, removed = diagrams.refresh()
            _say(f"{drawn} diagrams drawn, {removed} removed")
        case ["check"]:
            _say(f"{len(read.load().patterns)} patterns, all valid")
        case ["artifacts", site, base]:
            from _catalog import artifacts

            artifacts.write(read.load(), Path(site), base)
        case _:
            print(__doc__, file=sys.stderr)  # noqa: T201
            return 2
    return 0


def _say(text: str) -> None:
    print(text)  # noqa: T201 -- this is a command


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except CatalogError as error:
        raise SystemExit(str(error)) from None

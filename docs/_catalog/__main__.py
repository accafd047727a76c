"""The catalogue as a command: `python docs/_catalog COMMAND`.

new CATEGORY/SLUG   start a pattern
proofs CATEGORY/SLUG  name the files that prove a pattern
serve HOST:PORT     show the site, reloaded on every edit
diagrams            draw the diagrams that are missing, remove those that no page shows
check               read and validate everything
artifacts SITE URL  write the files beside the pages of a site that was built by something else
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from _catalog import artifacts, diagrams, new, read  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    match arguments:
        case ["new", name]:
            for path in new.start(name):
                print(f"wrote {path.relative_to(read.ROOT).as_posix()}")  # noqa: T201
            print("Replace each TODO; `make test` names those that are left.")  # noqa: T201
        case ["proofs", name]:
            print("\n".join(proofs_of(name)))  # noqa: T201
        case ["serve", address]:
            serve(address)
        case ["diagrams"]:
            drawn, removed = diagrams.refresh()
            print(f"{drawn} diagrams drawn, {removed} removed")  # noqa: T201
        case ["check"]:
            print(f"{len(read.load().patterns)} patterns, all valid")  # noqa: T201
        case ["artifacts", site, base]:
            artifacts.write(read.load(), Path(site), base)
        case _:
            print(__doc__, file=sys.stderr)  # noqa: T201
            return 2
    return 0


def proofs_of(name: str) -> list[str]:
    """Return the files that prove the pattern `category/slug`."""
    patterns = {pattern.id: pattern for pattern in read.load().patterns}
    if name not in patterns:
        raise read.CatalogError([f"{name!r} is no pattern; there are: {', '.join(patterns)}"])
    return sorted({proof.path for proof in patterns[name].proofs})


def serve(address: str) -> None:
    """Run the live server; begin as soon as the catalogue is valid, so that a mistake keeps nobody waiting."""
    told = ""
    while True:
        try:
            read.load()
            break
        except read.CatalogError as error:
            if str(error) != told:
                told = str(error)
                print(f"{told}\nWaiting until that is mended ...", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(0.5)
    argv = [sys.executable, "-m", "mkdocs", "serve", "--dirty", "--dev-addr", address]
    os.environ["PROVEN_PATTERNS_LIVE"] = "1"
    os.chdir(read.ROOT)
    if os.name == "posix":
        os.execv(sys.executable, argv)  # noqa: S606 -- one process, so that Ctrl-C reaches it and it cleans up
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(argv, check=True)  # noqa: S603 -- our own interpreter


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except read.CatalogError as error:
        raise SystemExit(str(error)) from None

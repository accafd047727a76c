"""The applications that tests/patterns/resilience/test_graceful_shutdown_server.py serves from processes.

Run as a program: `python graceful_shutdown_app.py graceful|plain|replaced PORT`. What it does is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "snippets" / "resilience"))

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from graceful_shutdown import Lifecycle


def say(text: str) -> None:
    print(text, flush=True)


async def ticks() -> AsyncIterator[str]:
    number = 0
    while True:
        yield f"data: {number}\n\n"
        number += 1
        await asyncio.sleep(0.02)


async def background(name: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    say(f"finished {name}")


def graceful() -> FastAPI:
    """With the pattern: everything is drained, finished and reported."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lifecycle = app.state.lifecycle = Lifecycle.from_env()
        lifecycle.install_signals()
        if delay := float(os.environ.get("SLOW_START", "0")):
            say("starting slowly")
            await asyncio.sleep(delay)

        async def close_pool() -> None:
            say("closed the pool")

        async def hang() -> None:
            await asyncio.sleep(3600)

        async def messages() -> AsyncIterator[int]:
            for number in range(10**6):
                await asyncio.sleep(0.01)
                yield number

        async def consume() -> None:
            last = -1
            async for number in lifecycle.until_draining(messages()):
                await asyncio.sleep(0.005)
                last = number
            say(f"consumed up to {last >= 0}")

        lifecycle.on_stop(close_pool)
        if os.environ.get("HANG"):
            lifecycle.on_stop(hang)
        lifecycle.track(consume(), "consumer")
        yield
        report = await lifecycle.stop("SIGTERM")
        say(f"cancelled {report.cancelled}")

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready(response: Response) -> bool:
        response.status_code = 200 if app.state.lifecycle.ready() else 503
        return bool(app.state.lifecycle.ready())

    @app.get("/slow")
    async def slow(seconds: float = 1.0) -> str:
        say("slow has begun")
        await asyncio.sleep(seconds)
        return "done"

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            async for tick in app.state.lifecycle.until_closing(ticks()):
                yield tick
            yield ": closing\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.get("/work")
    async def work(name: str, seconds: float) -> str:
        app.state.lifecycle.track(background(name, seconds), name)
        return "started"

    return app


def plain(*, replaced: bool = False) -> FastAPI:
    """As it is without the pattern."""
    tasks = set[asyncio.Task[None]]()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if replaced:
            signal.signal(signal.SIGTERM, lambda number, frame: say("the app's own handler"))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    async def ready() -> bool:
        return True

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(ticks(), media_type="text/event-stream")

    @app.get("/work")
    async def work(name: str, seconds: float) -> str:
        tasks.add(asyncio.create_task(background(name, seconds)))
        return "started"

    return app


def main(kind: str, port: int) -> None:
    app: Any = graceful() if kind == "graceful" else plain(replaced=kind == "replaced")
    grace = int(float(os.environ.get("GRACE_S", "1")) + 0.999) if kind == "graceful" else None
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="info", timeout_graceful_shutdown=grace)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

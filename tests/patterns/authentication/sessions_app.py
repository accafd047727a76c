"""The application of the proofs for sessions: started by uvicorn, in two processes."""

import os
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response

from session_http import clear_cookie, csrf_guard, current_session, set_cookie, token_of
from sessions_async import AsyncSessionStore
from sessions_core import Session


def create_app() -> FastAPI:
    store = AsyncSessionStore.from_env()
    in_memory: dict[str, str] = {}  # the naive store, one for each process

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        await store.redis.aclose()

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(csrf_guard)])
    current = Depends(current_session(store))

    @app.post("/login/{user}")
    async def login(user: str, request: Request) -> Response:
        response = Response(headers={"x-process": str(os.getpid())})
        await store.destroy(token_of(request))
        session = await store.create(user)
        in_memory[session.token] = user
        set_cookie(response, session)
        return response

    @app.get("/me")
    async def me(session: Annotated[Session, current]) -> dict[str, Any]:
        return {"user": session.user_id, "process": os.getpid(), "naive": in_memory.get(session.token)}

    @app.post("/logout-everywhere")
    async def logout_everywhere(session: Annotated[Session, current]) -> Response:
        await store.destroy_all(session.user_id)
        response = Response()
        clear_cookie(response)
        return response

    return app

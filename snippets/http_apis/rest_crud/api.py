"""Items over HTTP (RFC 9110): what a method does, to which version, and what it answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import Response

from .errors import MEANINGS, answer_errors
from .etags import ANY, Preconditions, etag, parse_etags
from .json_route import JsonRoute
from .models import ItemIn, ItemOut, ItemPatch, StaleError
from .store_async import AsyncItemStore

MAX_BODY = 1_000_000  # bytes

router = APIRouter(
    prefix="/items",
    tags=["items"],
    route_class=JsonRoute,
    responses={status: {"description": text} for status, text in MEANINGS.items()},
)


def _store_of(request: Request) -> AsyncItemStore:
    store: AsyncItemStore = request.app.state.items
    return store


def _preconditions(
    # As lists: a plain `str` would see the first of several lines only.
    if_match: Annotated[list[str] | None, Header(alias="If-Match")] = None,
    if_none_match: Annotated[list[str] | None, Header(alias="If-None-Match")] = None,
) -> Preconditions:
    try:
        return Preconditions(
            None if if_match is None else parse_etags(if_match),
            None if if_none_match is None else parse_etags(if_none_match),
        )
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


Store = Annotated[AsyncItemStore, Depends(_store_of)]
Given = Annotated[Preconditions, Depends(_preconditions)]


@router.post("", status_code=201, response_model=ItemOut)
async def create_item(request: Request, store: Store, item: ItemIn) -> Response:
    """Create an item under an id of the server's choice."""
    return _item_response(request, await store.create(uuid4(), item), 201)


@router.head("", include_in_schema=False)  # FastAPI's GET routes answer HEAD with 405
@router.get("")
async def list_items(
    store: Store, limit: Annotated[int, Query(ge=1, le=100)] = 50
) -> list[ItemOut]:
    """Return the first items in the order of their ids."""
    return await store.first(limit)


@router.head("/{item_id}", include_in_schema=False)
@router.get("/{item_id}", response_model=ItemOut, responses={304: {"description": "not modified"}})
async def read_item(request: Request, store: Store, given: Given, item_id: UUID) -> Response:
    """Return one item, or 304 when the client has its version already."""
    item = await store.get(item_id)
    if not given.match(item.version):
        raise StaleError(item_id)
    return _item_response(request, item, 200 if given.none_match(item.version) else 304)


@router.put("/{item_id}", response_model=ItemOut, responses={201: {"model": ItemOut}})
async def put_item(
    request: Request, store: Store, given: Given, item_id: UUID, item: ItemIn
) -> Response:
    """Replace an item; with `If-None-Match: *` create it under the id that the client chose."""
    if given.if_none_match == ANY and given.if_match is None:
        return _item_response(request, await store.create(item_id, item), 201)
    await _require_if_match(store, given, item_id)
    return _item_response(request, await store.replace(item_id, item, given.allow))


@router.patch("/{item_id}", response_model=ItemOut)
async def patch_item(
    request: Request,
    store: Store,
    given: Given,
    item_id: UUID,
    patch: Annotated[ItemPatch, Body(media_type="application/merge-patch+json")],
) -> Response:
    """Change the fields that the merge patch has."""
    await _require_if_match(store, given, item_id)
    return _item_response(request, await store.change(item_id, patch, given.allow))


@router.delete("/{item_id}", status_code=204, response_class=Response)
async def delete_item(store: Store, given: Given, item_id: UUID) -> Response:
    """Remove an item."""
    await _require_if_match(store, given, item_id)
    await store.delete(item_id, given.allow)
    return Response(status_code=204)  # returning None would send content-type: application/json


async def _require_if_match(store: AsyncItemStore, given: Preconditions, item_id: UUID) -> None:
    if given.if_match is None:
        await store.get(item_id)  # what does not exist is 404, whatever the headers say
        raise HTTPException(428, "send If-Match with the ETag that you have read")


def _item_response(request: Request, item: ItemOut, status: int = 200) -> Response:
    # Not request.url_for(), which believes the Host header: whoever sends one chooses the Location.
    path = request.app.url_path_for("read_item", item_id=str(item.id))
    url = f"{request.app.state.public_base_url}{path}"
    headers = {"ETag": etag(item.version), "Cache-Control": "private, no-cache"}
    headers["Content-Location"] = url  # "this body is what GET of that URL gives" (section 8.7)
    if status == 201:
        headers["Location"] = url
    if status == 304:
        return Response(status_code=304, headers=headers)
    return Response(item.model_dump_json(), status, headers, "application/json")


def create_app(store: AsyncItemStore, *, public_base_url: str = "") -> FastAPI:
    """Make the application; it opens the store when it starts and closes it when it stops.

    Args:
        store: Where the items are. Its table must exist: `await store.create_table()`.
        public_base_url: What clients put before `/items`, e.g. `https://api.example.com/v1`.
            Empty: `Location` is relative, which every client resolves against the request's URL.

    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with store:
            yield

    app = FastAPI(title="Items", lifespan=lifespan, max_body_size=MAX_BODY)
    app.state.items = store
    app.state.public_base_url = public_base_url.rstrip("/")
    app.include_router(router)
    answer_errors(app, router)
    return app


def app_from_env(environ: Mapping[str, str] = os.environ) -> FastAPI:
    """Make the application from its environment: `uvicorn --factory rest_crud.api:app_from_env`.

    Raises:
        RuntimeError: DATABASE_URL is not set, or is empty.

    """
    if not environ.get("DATABASE_URL"):
        raise RuntimeError("DATABASE_URL is not set, or is empty")
    store = AsyncItemStore(environ["DATABASE_URL"])
    return create_app(store, public_base_url=environ.get("PUBLIC_BASE_URL", ""))

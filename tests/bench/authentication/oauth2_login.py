"""Time of one callback: the module against Authlib's client for Starlette, with the same provider on loopback."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from typing import Any

import httpx2
from authlib.integrations.starlette_client import OAuth
from pydantic import SecretStr
from starlette.requests import Request

from bench.kit import Table, compare, ratio_table, version
from oidc_client import OidcClient, challenge
from servers.oidc import OidcProvider, _Code

ID, REDIRECT = "our-client", "https://shop.example/callback"


def _code(provider: OidcProvider, verifier: str, nonce: str) -> str:
    """Have the provider hand out a code, without the two requests of the browser."""
    code = secrets.token_urlsafe(16)
    provider.codes[code] = _Code(REDIRECT, challenge(verifier), nonce, "ada", True, time.time())
    return code


def tables() -> list[Table]:
    """Measure the way from the callback's query to verified claims."""
    secret = secrets.token_urlsafe(24)
    provider = OidcProvider(redirect_uri=REDIRECT, client_id=ID, client_secret=secret)
    try:
        with asyncio.Runner() as runner:
            http = httpx2.AsyncClient()
            ours = OidcClient(provider.issuer, ID, SecretStr(secret), REDIRECT, http=http)

            async def callback() -> str:
                pending = await ours.begin()
                code = _code(provider, pending.verifier, pending.nonce)
                params = {"state": pending.state, "code": code, "iss": provider.issuer}
                return (await ours.finish(params, pending)).subject

            def authlib(**options: Any) -> Any:
                client = OAuth().register(
                    "google",
                    client_id=ID,
                    client_secret=secret,
                    server_metadata_url=f"{provider.issuer}/.well-known/openid-configuration",
                    client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256"} | options,
                )

                async def theirs() -> str:
                    session: dict[str, Any] = {}
                    begin = await client.create_authorization_url(REDIRECT)
                    code = _code(provider, begin["code_verifier"], begin["nonce"])
                    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "session": session}
                    scope["query_string"] = f"state={begin['state']}&code={code}".encode()
                    request = Request(scope)
                    await client.save_authorize_data(request, redirect_uri=REDIRECT, **begin)
                    token = await client.authorize_access_token(request)
                    return str(token["userinfo"]["sub"])

                return lambda: runner.run(theirs())

            names = ["this module", version("authlib"), f"{version('authlib')}, TLS context shared"]
            calls = [lambda: runner.run(callback()), authlib(), authlib(verify=ssl.create_default_context())]
            if {call() for call in calls} != {"ada"}:
                raise RuntimeError("they do not agree")
            seconds = compare(dict(zip(names, calls, strict=True)), calls=10, rounds=11)
            runner.run(http.aclose())
    finally:
        provider.stop()
    return [
        ratio_table(
            "callback",
            seconds,
            base="this module",
            unit="ms",
            note="One sign-in without the browser's part: begin, check the answer, trade the code, verify the token. "
            "Metadata and keys are cached in all three. The provider signs with RSA on the same machine, which is in "
            "each row. Authlib makes a new HTTP client a callback and, unless it is given one, a new TLS context.",
        )
    ]

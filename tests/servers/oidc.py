"""A strict OpenID provider on loopback: what Google refuses, it refuses, and it fails on command.

It checks the exact redirect_uri, PKCE with S256, the client's secret (by Basic or in the form), single-use codes and
a nonce, signs with RS256 under keys that can be rotated, and names itself in its answers (RFC 9207).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import hashlib
import hmac
import json
import re
import secrets
import time
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from servers.http import Uvicorn

#: In `claims`, a claim that is left out of the ID token.
LEFT_OUT = object()


@functools.cache
def rsa_key(number: int) -> rsa.RSAPrivateKey:
    """Return the test process's RSA key of that number: making one takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclasses.dataclass
class _Code:
    redirect_uri: str
    challenge: str
    nonce: str
    user: str
    openid: bool
    issued_at: float


class OidcProvider:
    """Serves from construction until `stop()`. `reset()` takes every fault back; `hits` counts requests by path."""

    def __init__(self, *, redirect_uri: str, client_id: str, client_secret: str) -> None:
        self.redirect_uri, self.client_id, self.client_secret = redirect_uri, client_id, client_secret
        self.users: dict[str, dict[str, Any]] = {
            "ada": {"email": "ada@example.com", "email_verified": True, "name": "Ada"},
            "mallory": {"email": "mallory@example.com", "email_verified": True, "name": "Mallory"},
        }
        self.reset()
        paths = {
            "/.well-known/openid-configuration": self._configuration,
            "/authorize": self._authorize,
            "/token": self._token,
            "/jwks": self._jwks,
        }
        methods = {"/token": ["POST"]}
        routes = [Route(path, self._or_fault(go), methods=methods.get(path, ["GET"])) for path, go in paths.items()]
        self.app = Starlette(routes=routes)
        self._server = Uvicorn(self.app)
        self.issuer = self._server.url

    def stop(self) -> None:
        """End the server."""
        self.reset()
        self._server.stop()

    def reset(self) -> None:
        """Forget codes and counts, and behave well again."""
        self.codes: dict[str, _Code] = {}
        self.hits: Counter[str] = Counter()
        self.key = 1  # the number of the key that signs and is published
        self.auth_method = "client_secret_basic"
        self.supports_iss = True
        self.grants_openid = True
        # Faults.
        self.hanging: set[str] = set()  # paths that never answer
        self.canned: dict[str, tuple[int, str]] = {}  # path: status and body, whatever was asked
        self.metadata: dict[str, Any] = {}  # over the provider's own
        self.claims: dict[str, Any] = {}  # over the ID token's own; LEFT_OUT removes one
        self.header: dict[str, Any] = {}  # over the ID token's own
        self.signer: int | str = "published"  # or another key's number, "none", "hs256", "nothing"
        self.answer: dict[str, str | None] = {}  # over the authorization answer's own; None removes one
        self.last_form: dict[str, str] = {}
        self.last_claims: dict[str, Any] = {}

    @property
    def kid(self) -> str:
        """The published key's id."""
        return f"key-{self.key}"

    def _or_fault(self, go: Any) -> Any:
        async def endpoint(request: Request) -> Response:
            path = request.url.path
            self.hits[path] += 1
            while path in self.hanging:
                await asyncio.sleep(0.005)
            if path in self.canned:
                status, body = self.canned[path]
                return Response(body, status, media_type="application/json")
            try:
                done: Response = await go(request)
            except ClientDisconnect:  # the client gave up: nobody reads this
                return Response(status_code=400)
            return done

        return endpoint

    async def _configuration(self, request: Request) -> Response:
        own = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": [self.auth_method],
            "authorization_response_iss_parameter_supported": self.supports_iss,
        }
        return JSONResponse(own | self.metadata)

    async def _jwks(self, request: Request) -> Response:
        return JSONResponse({"keys": [self.public_jwk(self.key)]})

    def public_jwk(self, number: int) -> dict[str, Any]:
        """Return a key as the provider publishes it."""
        found = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(number).public_key(), as_dict=True)
        return found | {"kid": f"key-{number}", "use": "sig", "alg": "RS256"}

    async def _authorize(self, request: Request) -> Response:
        pairs = request.query_params.multi_items()
        query = dict(pairs)
        # A request that cannot be trusted is never redirected: it would be an open redirector.
        if len(pairs) != len(query) or query.get("client_id") != self.client_id:
            return JSONResponse({"error": "invalid_client"}, 400)
        if query.get("redirect_uri") != self.redirect_uri:
            return JSONResponse({"error": "redirect_uri_mismatch"}, 400)
        error = None
        scopes = query.get("scope", "").split()
        if query.get("response_type") != "code":
            error = "unsupported_response_type"
        elif "openid" not in scopes:
            error = "invalid_scope"
        elif not (
            query.get("nonce")
            and query.get("code_challenge_method") == "S256"
            and re.fullmatch(r"[\w-]{43}", query.get("code_challenge", ""), re.ASCII)
        ):
            error = "invalid_request"
        answer: dict[str, str | None] = {"state": query.get("state")}
        if self.supports_iss:
            answer["iss"] = self.issuer
        if error:
            answer["error"] = error
        else:
            answer["code"] = secrets.token_urlsafe(16)
            self.codes[str(answer["code"])] = _Code(
                redirect_uri=query["redirect_uri"],
                challenge=query["code_challenge"],
                nonce=query["nonce"],
                user=query.get("login", "ada"),  # stands for the provider's own login form
                openid=self.grants_openid,
                issued_at=time.time(),
            )
        sent = {name: value for name, value in (answer | self.answer).items() if value is not None}
        return RedirectResponse(f"{self.redirect_uri}?{urlencode(sent)}", 303)

    async def _token(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            return JSONResponse({"error": "invalid_request"}, 400)
        body = (await request.body()).decode()
        form = self.last_form = dict(parse_qsl(body))
        if any(len(values) > 1 for values in parse_qs(body).values()):
            return JSONResponse({"error": "invalid_request"}, 400)
        if self._authenticated(request.headers.get("authorization"), form) != (self.client_id, self.client_secret):
            return JSONResponse({"error": "invalid_client"}, 401, {"WWW-Authenticate": "Basic"})
        if form.get("grant_type") != "authorization_code":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        code = self.codes.pop(form.get("code", ""), None)  # once, whatever comes of it
        verifier = form.get("code_verifier", "")
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        if (
            code is None
            or time.time() - code.issued_at > 60
            or form.get("redirect_uri") != code.redirect_uri
            or not re.fullmatch(r"[\w.~-]{43,128}", verifier, re.ASCII)
            or digest != code.challenge
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        answer = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "expires_in": 3600}
        if code.openid:
            answer["id_token"] = self._id_token(code)
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    def _authenticated(self, header: str | None, form: dict[str, str]) -> tuple[str, str]:
        """Return the client's name and secret, sent by the one method that is allowed."""
        in_form = "client_secret" in form
        if self.auth_method == "client_secret_post" and header is None:
            return form.get("client_id", ""), form.get("client_secret", "")
        if self.auth_method != "client_secret_basic" or in_form or not (header or "").startswith("Basic "):
            return "", ""
        name, _, secret = base64.b64decode(str(header)[6:]).decode(errors="replace").partition(":")
        return unquote_plus(name), unquote_plus(secret)

    def _id_token(self, code: _Code) -> str:
        now = int(time.time())
        own = {
            "iss": self.issuer,
            "aud": self.client_id,
            "azp": self.client_id,
            "sub": code.user,
            "iat": now,
            "exp": now + 300,
            "nonce": code.nonce,
        }
        claims = {k: v for k, v in (own | self.users[code.user] | self.claims).items() if v is not LEFT_OUT}
        self.last_claims = claims
        header = {"kid": self.kid} | self.header
        if self.signer in ("none", "hs256", "nothing"):
            # By hand, since PyJWT refuses to: the published key as an HMAC secret, or no signature at all.
            public = rsa_key(self.key).public_key()
            pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            algorithm = {"none": "none", "hs256": "HS256", "nothing": "RS256"}[self.signer]
            parts = [{"alg": algorithm, "typ": "JWT"} | header, claims]
            text = b".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts)
            mac = hmac.digest(pem, text, "sha256") if self.signer == "hs256" else b""
            return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()
        number = self.key if self.signer == "published" else int(self.signer)
        return jwt.encode(claims, rsa_key(number), algorithm="RS256", headers=header)

"""TLS for proofs. To load the system's authorities takes longer than most of them."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

import trustme

#: For clients of plain http: it trusts nobody, and costs nothing to make.
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def system_context() -> ssl.SSLContext:
    """A context with the system's authorities, made once a process."""
    return ssl.create_default_context()


class Authority:
    """A certificate authority of a test's own, and both ends of a connection that it vouches for."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this authority and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return the context of a server of these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def server_files(self, folder: Path, *names: str) -> tuple[Path, Path]:
        """Write the certificate chain and the key of a server of these names; return both paths."""
        certificate = self._authority.issue_cert(*names)
        chain = folder / f"{names[0]}.chain.pem"
        key = folder / f"{names[0]}.key.pem"
        certificate.private_key_pem.write_to_path(key)
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(chain, append=number > 0)
        return chain, key

    def write_trust(self, folder: Path) -> Path:
        """Write the authority's certificate and return its path."""
        path = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(path)
        return path

"""Which real servers a test process spoke to."""

#: By service, the name and version that the server gave. The record of the run is made from it.
VERSIONS: dict[str, str] = {}

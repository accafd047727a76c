"""What ends a run."""

from __future__ import annotations


class Stopped(Exception):  # noqa: N818 -- somebody asked for it
    """The run is being interrupted: what is under way has been ended."""


class Unusable(Exception):  # noqa: N818 -- the message is for whoever runs this
    """The run cannot start or go on as it was asked for."""

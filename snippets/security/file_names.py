"""File names from strangers, made fit to show and to download as."""

from __future__ import annotations

import re
import unicodedata

from input_problem import refuse
from text_rules import has_controls, is_visible

_DEVICES = re.compile(
    r"(?:CON(?:IN\$|OUT\$)?|PRN|AUX|NUL|(?:COM|LPT)[0-9¹²³])(?:[ .].*)?", re.IGNORECASE
)


def safe_filename(text: str) -> str:
    """Return a name to show or to download as: one path part, no device of Windows.

    Store uploads under a name of your own (a UUID) all the same.

    Raises:
        InputProblem: Nothing usable is left, or it has more than 255 bytes.
    """
    if len(text) > 4_096:
        refuse("filename", "/filename")
    if has_controls(text):
        refuse("control_character", "/filename")
    last = re.split(r"[/\\]", text)[-1]
    if len(last) > 255:
        refuse("filename", "/filename")
    name = re.sub(r'[<>:"|?*]', "_", unicodedata.normalize("NFC", last)).strip(" .")
    if not is_visible(name) or _DEVICES.fullmatch(name) or len(name.encode()) > 255:
        refuse("filename", "/filename")
    return name

"""What is done to each built page: smaller, and with the names that screen readers need."""

from __future__ import annotations

import re

_PREFORMATTED = re.compile(r"(<pre\b.*?</pre>|<script\b.*?</script>|<textarea\b.*?</textarea>)", re.DOTALL)
_UNNAMED = re.compile(
    r'(<nav class="md-nav" data-md-level="\d" )aria-labelledby="(__nav_[\d_]+)_label"([^>]*>)'
    r'(\s*<label class="md-nav__title" for="\2">(.*?)</label>)',
    re.DOTALL,
)
_NEUTRAL = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')


def polished(page: str) -> str:
    """Return a page as it is published."""
    return slim(name_landmarks(page))


def slim(page: str) -> str:
    """Leave out what a reader never sees: templates' indentation, and highlighting that has no color of its own."""
    parts = _PREFORMATTED.split(page)
    for number, part in enumerate(parts):
        parts[number] = _NEUTRAL.sub(r"\1", part) if number % 2 else re.sub(r"\s*\n\s*", "\n", part)
    return "".join(parts)


def name_landmarks(page: str) -> str:
    """Give names to the dialog and the navigation blocks that Material leaves without."""
    dialog = 'data-md-component="search" role="dialog"'
    page = page.replace(dialog, f'{dialog} aria-label="Search"')

    def named(match: re.Match[str]) -> str:
        words = " ".join(re.sub(r"<[^>]+>", "", match[5]).split())
        return f'{match[1]}aria-label="{words}"{match[3]}{match[4]}'

    return _UNNAMED.sub(named, page)

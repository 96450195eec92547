"""Checks of the built site that MkDocs does not make: ``python -m website.pages FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements whose address a browser fetches by itself, with the attribute that holds it."""

_QUIET_LINKS = {"canonical", "prev", "next", "alternate"}


class _Loads(HTMLParser):
    """Collects the addresses that a page fetches when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        values = dict(attrs)
        if tag == "link" and values.get("rel") in _QUIET_LINKS:
            return
        address = values.get(_LOADING.get(tag, ""))
        if address:
            self.addresses.append(address)


def outside_loads(page: str) -> list[str]:
    """List what a page fetches from another server.

    Args:
        page: HTML.

    Returns:
        The addresses.
    """
    reader = _Loads()
    reader.feed(page)
    return [address for address in reader.addresses if address.startswith(("http:", "https:", "//"))]


def main(arguments: Sequence[str]) -> int:
    """Look through a built site.

    Args:
        arguments: The folder.

    Returns:
        The exit status: 1 if a page loads something from elsewhere or there is no page.
    """
    pages = sorted(Path(arguments[0]).rglob("*.html"))
    found = [f"{page}: loads {address}" for page in pages for address in outside_loads(page.read_text("utf-8"))]
    print("\n".join([*found, f"{len(pages)} pages, {len(found)} loads from elsewhere"]))
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Check, without a network, that every link between the built pages leads somewhere: ``python docs/check_links.py``."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

BUILT = Path(__file__).parent / "_build" / "html"


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}


def broken_links(folder: Path) -> list[str]:
    """Links to files or anchors that do not exist."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or not has_anchor(pages.get(target), unquote(parts.fragment)):
                broken.append(f"{path.relative_to(folder.resolve())}: {link}")
    return broken


def has_anchor(page: Page | None, fragment: str) -> bool:
    """Whether a page has such an anchor; what is no page needs none."""
    return page is None or not fragment or fragment in page.anchors


if __name__ == "__main__":
    if not BUILT.is_dir():
        sys.exit(f"{BUILT} does not exist; run sphinx-build first")
    found = broken_links(BUILT)
    print(*found, f"{len(found)} broken links", sep="\n")
    sys.exit(bool(found))

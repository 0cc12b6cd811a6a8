"""Check that relative links in Markdown files lead to files and headings that exist.

Usage: ``python .ci/check_links.py FILE_OR_FOLDER...``; prints one line per broken link.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(
    r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\""
)
FENCE = re.compile(r"^\s*(```|~~~)")
EXTERNAL = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines outside code blocks, without inline code."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    found: set[str] = set()
    for _, line in prose(path):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            repeats = sum(1 for a in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", a))
            found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def broken(path: Path) -> Iterator[str]:
    """One message for each link of a Markdown file that leads nowhere."""
    for number, line in prose(path):
        for groups in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            link = next(filter(None, groups))
            if EXTERNAL.match(link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                yield f"{path}:{number}: {link}: no such file"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{path}:{number}: {link}: no such heading"


def main(arguments: list[str]) -> int:
    """Check every Markdown file named, or lying in a folder named."""
    paths = [Path(argument) for argument in arguments]
    files = [f for p in paths for f in (sorted(p.rglob("*.md")) if p.is_dir() else [p])]
    files = [f for f in files if f.suffix == ".md"]
    messages = [message for file in files for message in broken(file)]
    print(*messages, sep="\n", end="\n" if messages else "")
    print(f"links: {len(files)} Markdown files, {len(messages)} broken")
    return bool(messages)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

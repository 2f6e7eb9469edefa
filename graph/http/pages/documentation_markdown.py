"""The Markdown texts of the documentation: the twins of the pages, and `/llms.txt`.

`/llms.txt` follows https://llmstxt.org: it lists all pages for programs that read Markdown.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from posixpath import normpath
from urllib.parse import urlsplit

_SCHEMES = ("http", "https", "mailto")
_FENCED_BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_SECTION = re.compile(r"^## +(.+)$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \|(?: (.+) \|)?$", re.MULTILINE)
_OPTIONAL_SECTION = "For developers of Merganser"  # readers of the API can skip it
_INTRODUCTION_PAGE = "llms.md"


def is_served_link(href: str, path: str, files: frozenset[str]) -> bool:
    """True for links of the page `path` to web sites, to pages of the folder, and within it."""
    parts = urlsplit(href)
    if parts.scheme or not parts.path:
        return not parts.scheme or parts.scheme in _SCHEMES
    return normpath(str(PurePosixPath(path).parent / parts.path)) in files


def markdown_twin(text: str, path: str, files: frozenset[str]) -> str:
    """Return the Markdown of a page. Links to files outside the folder become text."""

    def link_or_text(match: re.Match[str]) -> str:
        return match[0] if is_served_link(match[2], path, files) else match[1]

    parts = _FENCED_BLOCK.split(text)
    parts[::2] = [_LINK.sub(link_or_text, part) for part in parts[::2]]
    return "".join(parts)


def llms_text(read_page: Callable[[str], str], files: frozenset[str]) -> str:
    """Return the text of `/llms.txt` from the tables of contents of the documentation.

    The links are relative to `/llms.txt`.
    """
    sections = [
        *_contents_sections(read_page("README.md"), "", files),
        *_contents_sections(read_page("reference/README.md"), "reference/", files),
    ]
    sections.sort(key=lambda section: section.startswith("## Optional"))
    return "\n".join([read_page(_INTRODUCTION_PAGE), *sections])


def _contents_sections(text: str, folder: str, files: frozenset[str]) -> Iterator[str]:
    """Yield each section of a table of contents as a heading with a list of links."""
    _, *parts = _SECTION.split(text)
    for heading, table in zip(parts[::2], parts[1::2], strict=True):
        items = [
            f"- [{title}](docs/{normpath(folder + href)})" + (f": {contents}" if contents else "")
            for title, href, contents in _TABLE_ROW.findall(table)
            if normpath(folder + href) in files
        ]
        title = f"Reference: {heading}" if folder else heading
        if heading == _OPTIONAL_SECTION:
            title = "Optional"
        yield "\n".join([f"## {title}", "", *items, ""])

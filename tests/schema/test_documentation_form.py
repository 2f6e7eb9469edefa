"""Form of the documentation: length of pages and of sentences."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_PAGE_LINES = 300
MAX_SENTENCE_WORDS = 25
WRITTEN_PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if "reference" not in page.parts and page.name != "settings.md"
    ),
]
# They are tables, whose length follows from the schema and the settings. The indexes list names.
GENERATED_PAGES = [
    page for page in sorted((ROOT / "docs" / "reference").rglob("*.md")) if page.name != "README.md"
]
_VERSION_HEADING = re.compile(r"^(?=## \[)", re.MULTILINE)
_CODE_BLOCK = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
_LIST_ITEM = re.compile(r"(?:[-*]|\d+\.)\s+(.*)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_WORD = re.compile(r"[A-Za-z0-9][\w'/.-]*")


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs and list items of a page, without tables, headings and code blocks."""
    lines = list[str]()
    for line in [*_CODE_BLOCK.sub("", text).splitlines(), ""]:
        stripped = line.strip()
        item = _LIST_ITEM.match(stripped)
        if not stripped or stripped.startswith(("|", "#", "<")) or item:
            if lines:
                yield " ".join(lines)
            lines = [item[1]] if item else []
        else:
            lines.append(stripped)


def long_sentences(text: str) -> list[str]:
    """Return the sentences with too many words. Code in backquotes is one word."""
    return [
        sentence
        for paragraph in paragraphs(text)
        for sentence in re.split(
            r"(?<=[.!?])\s+", _LINK.sub(r"\1", re.sub(r"`[^`]*`", "code", paragraph))
        )
        if len(_WORD.findall(sentence)) > MAX_SENTENCE_WORDS
    ]


def test_long_sentence_is_found() -> None:
    words = "word " * MAX_SENTENCE_WORDS
    assert long_sentences(f"Short one.\n\n- {words}\n  more.\n\n| {words} more |\n") != []
    assert long_sentences(f"{words.strip()}. Another {'`a b c`' * 30} one.") == []


@pytest.mark.parametrize("page", WRITTEN_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_has_short_sentences_and_limited_length(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # readers of the changelog read one version, so each version is like a page
    parts = _VERSION_HEADING.split(text) if page.name == "CHANGELOG.md" else [text]
    assert max(part.count("\n") for part in parts) <= MAX_PAGE_LINES
    assert long_sentences(text) == []


def test_generated_pages_have_short_sentences_and_limited_length() -> None:
    assert len(GENERATED_PAGES) > 300
    texts = {page: page.read_text(encoding="utf-8") for page in GENERATED_PAGES}
    assert [(page, sentence) for page in texts for sentence in long_sentences(texts[page])] == []
    assert [page for page, text in texts.items() if text.count("\n") > MAX_PAGE_LINES] == []

"""Extract the part of a message that shows the search terms."""

import asyncio
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from html import escape

from mail.search.tokenizer import Term, term_of
from mail.storage.message_content import Stored
from models.store.text_folding import fold_text
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.filters.filter_conditions import divided
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.search.relevance import terms

BEFORE, LENGTH = 60, 200  # characters before the first match, and in all
LOOKED = 262_144  # characters of a message text
SHORT = 4096  # shorter texts are searched on the event loop, others in a thread
_RUN = re.compile(r"[^\s.,;:!?()<>\"'/@]+")


def seek(ctx: Context, place: Hashable, where: MessageWhere) -> None:
    """Remember the search terms of the list at this path of the response."""
    words = terms(divided(where)[0]) if not where.everything else []
    if words:
        ctx.sought[place] = words


def sought(ctx: Context, places: Iterable[Hashable]) -> Sequence[Term]:
    """Return the search terms of the first of these paths that has a searched list."""
    known = ctx.sought
    return next((known[place] for place in places if place in known), ()) if known else ()


async def snippet(message: Stored, words: Sequence[Term], *, marked: bool) -> str | None:
    """Return the text around the first match; None without a match.

    With `as_html` the snippet is escaped HTML with `<mark>` around the matches.
    """
    if not words:
        return None
    text = (await content.texts(message) or "")[:LOOKED]
    if len(text) < SHORT:
        return _snippet(text, words, marked=marked)
    return await asyncio.to_thread(_snippet, text, words, marked=marked)


def _snippet(text: str, words: Sequence[Term], *, marked: bool) -> str | None:
    """Return the snippet of a text; None without a match."""
    first = next(_spans(text, words), None)
    if first is None:
        return None
    start = max(0, first[0] - BEFORE)
    if start:  # start at the beginning of a word if possible
        blank = text.find(" ", start, first[0])
        start = blank + 1 if blank >= 0 else start
    piece = text[start : max(start + LENGTH, first[1])]
    ends = ("…" if start else "", "…" if start + len(piece) < len(text.rstrip()) else "")
    if not marked:
        return ends[0] + " ".join(piece.split()) + ends[1]
    made, at = [], 0
    for low, high in _spans(piece, words):
        made += [escape(piece[at:low]), "<mark>", escape(piece[low:high]), "</mark>"]
        at = high
    return ends[0] + " ".join("".join([*made, escape(piece[at:])]).split()) + ends[1]


def _spans(text: str, words: Sequence[Term]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each match in the text, in order."""
    wanted = {word for term in words for word in term.words}
    begun = tuple(term.words[-1] for term in words if term.prefix)
    for run in _RUN.finditer(text):
        yield from _within(run.group(), run.start(), wanted, begun)


def _within(
    run: str, at: int, wanted: set[str], begun: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """Yield start and end of the match in one word of the text, if there is one."""
    known = term_of(run)
    if known is None:
        return
    if not any(w in wanted or w.startswith(begun) for w in known.words if begun or w in wanted):
        return
    plain = fold_text(run)
    inside = [plain.find(word) for word in wanted if word in plain]
    if len(plain) != len(run) or not inside or len(known.words) == 1:
        yield at, at + len(run)
        return
    ends = [plain.find(word) + len(word) for word in wanted if word in plain]
    yield at + min(inside), at + max(ends)

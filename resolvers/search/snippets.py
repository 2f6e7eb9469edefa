"""Extract the part of a message that shows the search terms."""

import asyncio
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cache, partial
from html import escape

from mail.search.tokenizer import SearchTerm, term_from_text_or_none
from mail.storage.message_content import StoredMessage
from models.store.text_folding import fold_text
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.filters.filter_conditions import split_search_words
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search.relevance import required_terms

MAX_LEAD_LENGTH, SNIPPET_LENGTH = 60, 200  # characters before the first match, and in all
MAX_SEARCHED_LENGTH = 262_144  # characters of a message text
MAX_INLINE_LENGTH = 4096  # shorter texts are searched on the event loop, others in a thread
_WORD = re.compile(r"[^\s.,;:!?()<>\"'/@]+")


def remember_search_terms(
    ctx: Context, response_path: Hashable, conditions: MessageConditions
) -> None:
    """Remember the search terms of the list at this path of the response.

    They are extracted if a snippet is requested.
    """
    if not conditions.is_empty:
        ctx.search_terms_by_path[response_path] = cache(partial(_search_terms, conditions))


def _search_terms(conditions: MessageConditions) -> Sequence[SearchTerm]:
    """Return the terms that all messages of a filter contain."""
    return required_terms(split_search_words(conditions)[0])


def search_terms_of_first_searched_path(
    ctx: Context, response_paths: Iterable[Hashable]
) -> Sequence[SearchTerm]:
    """Return the search terms of the first of these paths that has a searched list."""
    extract_terms_by_path = ctx.search_terms_by_path
    if not extract_terms_by_path:
        return ()
    for response_path in response_paths:
        extract_terms = extract_terms_by_path.get(response_path)
        if extract_terms is not None and (terms := extract_terms()):
            return terms
    return ()


async def extract_snippet_or_none(
    message: StoredMessage, terms: Sequence[SearchTerm], *, as_html: bool
) -> str | None:
    """Return the text around the first match; None without a match.

    With `as_html` the snippet is escaped HTML with `<mark>` around the matches.
    """
    if not terms:
        return None
    text = (await content.plain_text(message) or "")[:MAX_SEARCHED_LENGTH]
    if len(text) < MAX_INLINE_LENGTH:
        return _snippet_from_text(text, terms, as_html=as_html)
    return await asyncio.to_thread(_snippet_from_text, text, terms, as_html=as_html)


def _snippet_from_text(text: str, terms: Sequence[SearchTerm], *, as_html: bool) -> str | None:
    """Return the snippet of a text; None without a match."""
    first = next(_match_spans(text, terms), None)
    if first is None:
        return None
    start = max(0, first[0] - MAX_LEAD_LENGTH)
    if start:  # start at the beginning of a word if possible
        blank = text.find(" ", start, first[0])
        start = blank + 1 if blank >= 0 else start
    excerpt = text[start : max(start + SNIPPET_LENGTH, first[1])]
    ellipses = ("…" if start else "", "…" if start + len(excerpt) < len(text.rstrip()) else "")
    if not as_html:
        return ellipses[0] + " ".join(excerpt.split()) + ellipses[1]
    parts, at = [], 0
    for low, high in _match_spans(excerpt, terms):
        parts += [escape(excerpt[at:low]), "<mark>", escape(excerpt[low:high]), "</mark>"]
        at = high
    return ellipses[0] + " ".join("".join([*parts, escape(excerpt[at:])]).split()) + ellipses[1]


def _match_spans(text: str, terms: Sequence[SearchTerm]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each match in the text, in order."""
    searched_words = {word for term in terms for word in term.words}
    prefixes = tuple(term.words[-1] for term in terms if term.is_prefix)
    for run in _WORD.finditer(text):
        yield from _match_spans_in_word(run.group(), run.start(), searched_words, prefixes)


def _match_spans_in_word(
    text_run: str, start: int, searched_words: set[str], prefixes: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """Yield start and end of the match in one word of the text, if there is one."""
    plain_term = term_from_text_or_none(text_run)
    if plain_term is None:
        return
    if not any(
        w in searched_words or w.startswith(prefixes)
        for w in plain_term.words
        if prefixes or w in searched_words
    ):
        return
    plain = fold_text(text_run)
    inside = [plain.find(word) for word in searched_words if word in plain]
    if len(plain) != len(text_run) or not inside or len(plain_term.words) == 1:
        yield start, start + len(text_run)
        return
    word_ends = [plain.find(word) + len(word) for word in searched_words if word in plain]
    yield start + min(inside), start + max(word_ends)

"""Matching of filters with messages that are not stored yet, and filters as JSON values."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from mail import mime
from mail.archives.source_message import Found
from mail.mailboxes import paths
from mail.mime import Header, MailAddress
from mail.search.tokenizer import Places, words_of
from mail.storage.message_flags import SYSTEM_FLAGS
from mail.storage.message_insert import Letter
from mail.storage.received_messages import SMALL
from models.errors import Invalid
from models.files.blobs import StorageTier
from models.mailboxes.tables import SpecialUse
from models.store.text_folding import fold_text
from models.submission.tables import SubmissionState
from resolvers.mailboxes.loaders import Named
from resolvers.messages.filters.filter_lookups import parts
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.search.index_query import sought_by
from resolvers.sql_text import LONGEST

STORED = {  # fields of stored messages only, with their API names
    "searchable": "searchable",
    "thread_id": "thread",
    "uids": "uids",
    "seqs": "seqs",
    "guids": "guids",
    "tier": "tier",
    "saved_since": "savedSince",
    "saved_before": "savedBefore",
    "expires_before": "expiresBefore",
    "modified_since": "modifiedSince",
    "snoozed": "snoozed",
    "submission_states": "submissionStates",
}
TEXTS = (
    *("text", "body", "from_", "to", "to_only", "cc", "bcc", "recipient", "subject", "list_id"),
    *("message_id", "keyword"),
)
TIMES = ("received_since", "received_before", "sent_since", "sent_before")
TIMES_STORED = ("saved_since", "saved_before", "expires_before")
FORWARDED = "$forwarded"


def check(where: MessageWhere) -> None:
    """Raise InvalidInput if a filter is too large, or needs what only stored messages have."""
    list(parts(where))  # checks the limits
    for path, index, one in _places(where, ("filter",), None):
        for name in _named(one):
            if len(getattr(one, name) or "") > LONGEST:
                words = f"what is looked for has at most {LONGEST} characters"
                raise Invalid(words, constraint="max", path=["filter"])
        if one.query is not None:
            sought_by(one.query)
        for name in _unsupported(one):
            words = "this is known of stored messages alone, and these are not stored yet"
            raise Invalid(words, constraint="unsupported", path=[*path, name], index=index)


def _named(one: MessageWhere) -> Iterator[str]:
    return (name for name in TEXTS if getattr(one, name))


def _unsupported(one: MessageWhere) -> Iterator[str]:
    for name, shown in STORED.items():
        if getattr(one, name) is not None:
            yield shown
    if one.mailbox and one.mailbox.path is None:
        yield "mailbox"
    if any(name.path is None for name in one.mailboxes or ()):
        yield "mailboxes"


def _places(
    where: MessageWhere, path: Sequence[str], index: int | None
) -> Iterator[tuple[Sequence[str], int | None, MessageWhere]]:
    """Yield the filter and those in it, each with its path and index in the input."""
    yield path, index, where
    for name, some in (("and", where.every), ("or", where.some)):
        for nth, one in enumerate(some or ()):
            yield from _places(one, (*path, name), nth)
    if where.none:
        yield from _places(where.none, (*path, "not"), None)


def plain(where: MessageWhere) -> dict[str, Any]:
    """Convert a filter to JSON values."""
    return {
        field.name: _plain(value)
        for field in fields(where)
        if (value := getattr(where, field.name)) is not None
    }


def _plain(value: Any) -> Any:
    match value:
        case MessageWhere():
            return plain(value)
        case Named():
            named = {field.name: getattr(value, field.name) for field in fields(value)}
            return {name: _plain(part) for name, part in named.items() if part is not None}
        case tuple():
            return [_plain(one) for one in value]
        case datetime():
            return value.isoformat()
        case StrEnum():
            return value.value
        case _:
            return value


def where_of(given: Mapping[str, Any]) -> MessageWhere:
    """Rebuild a filter from the values of `json_from_conditions`."""
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("every", "some"):
            made[name] = tuple(where_of(one) for one in value)
        elif name == "none":
            made[name] = where_of(value)
        elif name == "mailbox":
            made[name] = _name_of(value)
        elif name == "mailboxes":
            made[name] = tuple(_name_of(one) for one in value)
        elif name in (*TIMES, *TIMES_STORED):
            made[name] = datetime.fromisoformat(value)
        elif name == "tier":
            made[name] = StorageTier(value)
        elif name == "submission_states":
            made[name] = tuple(map(SubmissionState, value))
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return MessageWhere(**made)


def _name_of(given: Mapping[str, Any]) -> Named:
    use = given.get("special_use")
    values: dict[str, Any] = {**given, "special_use": SpecialUse(use) if use else None}
    return Named(**values)


async def fits(where: MessageWhere, found: Found, letter: Letter, now: datetime) -> bool:
    """Return True if a fetched and parsed message matches the filter.

    Mailboxes are those of the source. A message without an arrival date arrives `now`.
    """
    message = _Message(found, letter, now)
    if letter.size < SMALL:
        return message.fits(where)
    return await asyncio.to_thread(message.fits, where)


@dataclass
class _Message:
    """A message that is not stored, with its texts parsed once for all conditions."""

    found: Found
    letter: Letter
    now: datetime

    def fits(self, where: MessageWhere) -> bool:
        """True if all conditions hold. A condition on a missing value does not hold."""
        return (
            (where.every is None or (bool(where.every) and all(map(self.fits, where.every))))
            and (where.some is None or any(map(self.fits, where.some)))
            and (where.none is None or not self.fits(where.none))
            and all(self._tests(where))
        )

    def _tests(self, where: MessageWhere) -> Iterator[bool]:
        yield from self._marks(where)
        yield from self._ranges(where)
        yield from self._places(where)
        yield from self._people(where)
        yield from self._texts(where)
        if where.attachment:
            yield self._has_file(*where.attachment)

    def _marks(self, where: MessageWhere) -> Iterator[bool]:
        for name in SYSTEM_FLAGS:
            if (asked := getattr(where, name)) is not None:
                yield (f"\\{name}" in self._flags) is asked
        if where.keyword:
            yield not where.keyword.startswith("\\") and fold_text(where.keyword) in map(
                fold_text, self._flags
            )
        if where.forwarded is not None:
            yield (FORWARDED in self._flags) is where.forwarded
        if where.has_attachment is not None:
            yield (self.letter.facts.attachment_count > 0) is where.has_attachment

    def _ranges(self, where: MessageWhere) -> Iterator[bool]:
        received, sent = self.found.received_at or self.now, self.letter.facts.date
        if where.received_since:
            yield received >= where.received_since
        if where.received_before:
            yield received < where.received_before
        if where.sent_since:
            yield sent is not None and sent >= where.sent_since
        if where.sent_before:
            yield sent is not None and sent < where.sent_before
        if where.larger is not None:
            yield self.letter.size > where.larger
        if where.smaller is not None:
            yield self.letter.size < where.smaller

    def _places(self, where: MessageWhere) -> Iterator[bool]:
        folder = fold_text(paths.spelled(self.found.folder))
        if where.mailbox:
            yield folder == fold_text(where.mailbox.path or "")
        if where.mailboxes is not None:
            yield any(folder == fold_text(name.path or "") for name in where.mailboxes)
        if where.mailbox_masks is not None:
            yield any(paths.compiled(mask).fullmatch(folder) for mask in where.mailbox_masks)

    def _people(self, where: MessageWhere) -> Iterator[bool]:
        facts = self.letter.facts
        told = self.found.told
        envelope = told.recipients if told else ()
        if where.from_:
            yield _holds(where.from_, _written(facts.from_[:1]))
        for name, people in (
            ("to", [*facts.to, *facts.cc]),
            ("to_only", facts.to),
            ("cc", facts.cc),
            ("bcc", facts.bcc),
            ("recipient", [*facts.to, *facts.cc, *facts.bcc]),
        ):
            if asked := getattr(where, name):
                others = envelope if name == "recipient" else ()
                yield _holds(asked, [*_written(people), *others])

    def _texts(self, where: MessageWhere) -> Iterator[bool]:
        facts = self.letter.facts
        if where.subject:
            yield _holds(where.subject, [facts.subject])
        if where.list_id:
            yield _holds(where.list_id, [facts.list_id or ""])
        if where.message_id:
            yield facts.message_id == where.message_id
        if where.query is not None:
            yield self._words.holds(sought_by(where.query))
        if where.header:
            yield self._has_header(*where.header)
        if where.body is not None:
            yield fold_text(where.body) in self._body
        if where.text is not None:
            asked = fold_text(where.text)
            yield asked in self._body or asked in self._head

    def _has_header(self, name: str, part: str | None) -> bool:
        known = [each.value for each in self._headers if each.key.casefold() == name.casefold()]
        return bool(known) and (
            part is None or any(fold_text(part) in fold_text(value) for value in known)
        )

    def _has_file(self, filename: str | None, kind: str | None) -> bool:
        if not filename and not kind:
            return self.letter.facts.attachment_count > 0
        return any(
            _holds(filename or "", [file.filename or ""])
            and _holds(kind or "", [file.content_type])
            for file in self.letter.facts.attachments
        )

    @cached_property
    def _flags(self) -> frozenset[str]:
        return frozenset(flag.casefold() for flag in self.found.flags)

    @cached_property
    def _words(self) -> Places:
        return Places(words_of(self.letter.facts.search_text))

    @cached_property
    def _headers(self) -> Sequence[Header]:
        return mime.headers(self._raw, self.letter.facts.structure)

    @cached_property
    def _head(self) -> str:
        return fold_text("\n".join(f"{each.key}: {each.value}" for each in self._headers))

    @cached_property
    def _body(self) -> str:
        return fold_text(mime.body_text(self._raw, self.letter.facts.structure) or "")

    @property
    def _raw(self) -> bytes:
        return self.found.raw or b""


def _written(people: Iterable[MailAddress]) -> list[str]:
    return [f"{each.name or ''} {each.address}" for each in people]


def _holds(part: str, texts: Iterable[str]) -> bool:
    """True if one of the texts contains this part, like `texts.within` in SQL.

    An empty part is in each text; a part of invisible characters alone is in none.
    """
    asked = fold_text(part)
    return bool(asked or not part) and any(asked in fold_text(text) for text in texts)

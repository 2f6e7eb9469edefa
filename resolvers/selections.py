"""Which messages: the filter of lists and the selection of bulk operations, as SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, cast, func, not_, or_, select
from sqlmodel import col

from models.errors import Invalid
from models.mailboxes import Mailbox
from models.messages import Message
from resolvers.context import Context
from resolvers.mailboxes import Named
from resolvers.searchindex import matching

DEPTH = 8  # of and, or and not
UIDS = 1000  # ranges of one set


@dataclass(frozen=True, slots=True)
class MessageWhere:
    """All given conditions hold; None and empty ask for nothing."""

    every: tuple["MessageWhere", ...] = ()
    some: tuple["MessageWhere", ...] = ()
    none: "MessageWhere | None" = None
    query: str | None = None
    from_: str | None = None
    to: str | None = None
    subject: str | None = None
    message_id: str | None = None
    mailbox: Named | None = None
    thread_id: int | None = None
    uids: str | None = None
    seen: bool | None = None
    flagged: bool | None = None
    answered: bool | None = None
    draft: bool | None = None
    deleted: bool | None = None
    keyword: str | None = None
    received_since: datetime | None = None
    received_before: datetime | None = None
    sent_since: datetime | None = None
    sent_before: datetime | None = None
    larger: int | None = None
    smaller: int | None = None
    has_attachment: bool | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is asked for."""
        return self == MessageWhere()


def conditions(ctx: Context, where: MessageWhere, user_id: int) -> list[ColumnElement[bool]]:
    """The filter as SQL over messages of this user."""
    return list(_Terms(ctx, user_id).of(where, 0))


FLAGS = ("seen", "flagged", "answered", "draft", "deleted")


@dataclass(frozen=True, slots=True)
class _Terms:
    ctx: Context
    user_id: int

    def of(self, where: MessageWhere, depth: int) -> list[ColumnElement[bool]]:
        if depth > DEPTH:
            raise Invalid(
                f"and, or and not go {DEPTH} levels deep", constraint="depth", path=["filter"]
            )
        terms = [*self._groups(where, depth), *self._texts(where), *_marks(where)]
        return [*terms, *_times(where), *_sizes(where), *self._places(where)]

    def _groups(self, where: MessageWhere, depth: int) -> list[ColumnElement[bool]]:
        terms = [and_(*self.of(one, depth + 1)) for one in where.every if not one.everything]
        if where.some:
            terms.append(or_(*(and_(*self.of(one, depth + 1)) for one in where.some)))
        if where.none is not None:
            terms.append(not_(and_(*self.of(where.none, depth + 1))))
        return terms

    def _texts(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if where.query:
            terms.append(matching(self.ctx, self.user_id, where.query))
        if where.from_:
            sender = (
                func.coalesce(col(Message.from_name), "")
                + " "
                + func.coalesce(col(Message.from_address), "")
            )
            terms.append(_within(sender, where.from_))
        if where.to:
            people = cast(col(Message.to), String) + cast(col(Message.cc), String)
            terms.append(_within(people, where.to))
        if where.subject:
            terms.append(_within(col(Message.subject), where.subject))
        if where.message_id:
            terms.append(col(Message.message_id) == where.message_id)
        return terms

    def _places(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if where.mailbox:
            terms.append(col(Message.mailbox_id).in_(self._mailbox(where.mailbox)))
        if where.thread_id is not None:
            terms.append(col(Message.thread_id) == where.thread_id)
        if where.uids is not None:
            terms.append(uid_set(where.uids))
        return terms

    def _mailbox(self, name: Named) -> Select[int]:
        theirs = select(col(Mailbox.id)).where(col(Mailbox.user_id) == self.user_id)
        if name.id is not None:
            return theirs.where(col(Mailbox.id) == name.id)
        if name.path is not None:
            return theirs.where(col(Mailbox.path) == name.path)
        return theirs.where(col(Mailbox.special_use) == name.special_use)


def _within(column: Any, part: str) -> ColumnElement[bool]:
    return func.lower(column).contains(part.lower(), autoescape=True)


def _marks(where: MessageWhere) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = [
        col(getattr(Message, name)).is_(value)
        for name in FLAGS
        if (value := getattr(where, name)) is not None
    ]
    if where.keyword:
        words = cast(col(Message.keywords), String)
        terms.append(words.contains(f'"{where.keyword}"', autoescape=True))
    if where.has_attachment is not None:
        count = col(Message.attachment_count)
        terms.append(count > 0 if where.has_attachment else count == 0)
    return terms


def _times(where: MessageWhere) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if where.received_since:
        terms.append(col(Message.received_at) >= where.received_since)
    if where.received_before:
        terms.append(col(Message.received_at) < where.received_before)
    if where.sent_since:
        terms.append(col(Message.date) >= where.sent_since)
    if where.sent_before:
        terms.append(col(Message.date) < where.sent_before)
    return terms


def _sizes(where: MessageWhere) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if where.larger is not None:
        terms.append(col(Message.size) > where.larger)
    if where.smaller is not None:
        terms.append(col(Message.size) < where.smaller)
    return terms


def uid_set(text: str) -> ColumnElement[bool]:
    """A set such as "1,3:15,40:*" as SQL; "*" is the highest there is."""
    ranges = [part.strip() for part in text.split(",")]
    if len(ranges) > UIDS:
        raise Invalid(f"at most {UIDS} ranges", constraint="max", path=["uids"])
    uid = col(Message.uid)
    other = Message.__table__.alias("other")  # type: ignore[attr-defined]
    highest = (
        select(func.max(other.c.uid))
        .where(other.c.mailbox_id == col(Message.mailbox_id))
        .correlate(Message)
        .scalar_subquery()
    )
    terms: list[ColumnElement[bool]] = []
    for part in ranges:
        low, colon, high = part.partition(":")
        ends = [_end(end) for end in ((low, high) if colon else (low,))]
        if None in ends:
            known = [end for end in ends if end is not None]
            terms.append(uid >= known[0] if known else uid == highest)
            if known:
                terms.append(uid == highest)  # "40:*" holds the highest even below 40
        else:
            numbers = [end for end in ends if end is not None]
            terms.append(uid.between(min(numbers), max(numbers)))
    return or_(*terms)


def _end(text: str) -> int | None:
    if text == "*":
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32:
        return int(text)
    raise Invalid('a set of uids is like "1,3:15,40:*"', constraint="pattern", path=["uids"])


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of the viewer: exactly one of ids, a folder, and a filter; uids narrow a folder."""

    ids: Sequence[int] | None = None
    mailbox: Named | None = None
    uids: str | None = None
    where: MessageWhere | None = None

    def condition(self, ctx: Context, user_id: int) -> list[ColumnElement[bool]]:
        """The selection as SQL."""
        given = sum(part is not None for part in (self.ids, self.mailbox, self.where))
        if given != 1 or (self.uids is not None and self.mailbox is None):
            raise Invalid(
                "select by ids, by mailbox (with uids or whole), or by filter: by one of them",
                constraint="exclusive",
                path=["select"],
            )
        if self.ids is not None:
            return [col(Message.id).in_(self.ids)]
        where = self.where or MessageWhere(mailbox=self.mailbox, uids=self.uids)
        return conditions(ctx, where, user_id)

"""Which messages: the filter of lists and the selection of bulk operations, as SQL."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    case,
    cast,
    func,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlmodel import col

from models.columns import table_of
from models.errors import Invalid
from models.mailboxes import Mailbox
from models.messages import Message
from resolvers.context import Context
from resolvers.mailboxes import Named
from resolvers.searchindex import matching
from resolvers.texts import within

DEPTH = 8  # of and, or and not
TERMS = 250  # of a whole filter; SQLite takes no expression of more than 1000 levels
UIDS = 1000  # parts of one set
RANGES = 250  # apart from each other, of one set
LONGEST = 10  # digits of a uid
_NOT = custom_op[Any]("NOT")  # as the index of the unseen has it: SQLite compares the words
HIGHEST = 1 << 32  # above all uids (RFC 9051, section 2.3.1.1)


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


LIES_IN: Any = col(Message.mailbox_id)


def conditions(
    ctx: Context, where: MessageWhere, user_id: int, *, place: ColumnElement[Any] = LIES_IN
) -> list[ColumnElement[bool]]:
    """The filter as SQL over messages of this user; `place` has the folder that is meant."""
    return list(_Terms(ctx, user_id, place).of(where, 0))


def narrowed(
    ctx: Context,
    terms: Sequence[ColumnElement[bool]],
    where: MessageWhere,
    user_id: int,
    *,
    place: ColumnElement[Any] = LIES_IN,
) -> list[ColumnElement[bool]]:
    """These terms and the filter's, of messages of this user; a search of words comes first."""
    if not where.query or ctx.world.database.dialect != "sqlite":
        return [*terms, *conditions(ctx, where, user_id, place=place)]
    rest = conditions(ctx, replace(where, query=None), user_id, place=place)
    # Inside a CASE nothing names an index: SQLite would else go through a whole folder, and
    # ask of each message whether it was found.
    return [matching(ctx, user_id, where.query), case((and_(*terms, *rest), 1), else_=0) == 1]


FLAGS = ("seen", "flagged", "answered", "draft", "deleted")


@dataclass(slots=True)
class _Terms:
    ctx: Context
    user_id: int
    place: ColumnElement[Any]
    many: int = field(default=0, init=False)  # terms made so far

    def of(self, where: MessageWhere, depth: int) -> list[ColumnElement[bool]]:
        if depth > DEPTH:
            raise Invalid(
                f"and, or and not go {DEPTH} levels deep", constraint="depth", path=["filter"]
            )
        terms = [*self._texts(where), *_marks(where), *_times(where), *_sizes(where)]
        terms += self._places(where)
        self.many += len(terms) + 1
        if self.many > TERMS:
            raise Invalid(f"a filter has at most {TERMS} terms", constraint="max", path=["filter"])
        return [*self._groups(where, depth), *terms]

    def _groups(self, where: MessageWhere, depth: int) -> list[ColumnElement[bool]]:
        terms = [self._all(one, depth) for one in where.every]
        if where.some:
            terms.append(or_(*(self._all(one, depth) for one in where.some)))
        if where.none is not None:
            terms.append(not_(self._all(where.none, depth)))
        return terms

    def _all(self, where: MessageWhere, depth: int) -> ColumnElement[bool]:
        return and_(true(), *self.of(where, depth + 1))

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
            terms.append(within(sender, where.from_))
        if where.to:
            terms.append(within(people(Message.to, Message.cc), _written(where.to)))
        if where.subject:
            terms.append(within(col(Message.subject), where.subject))
        if where.message_id:
            terms.append(col(Message.message_id) == where.message_id)
        return terms

    def _places(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if where.mailbox:
            terms.append(self.place.in_(self._mailbox(where.mailbox)))
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


def people(*columns: Any) -> ColumnElement[str]:
    """SQL: the people of these columns as one text; who has no name is not called "null"."""
    listed: list[Any] = [
        func.replace(cast(col(column), String), "[null,", "[", type_=String) for column in columns
    ]
    whole: ColumnElement[str] = listed[0]
    for one in listed[1:]:
        whole = whole + one
    return whole


def _written(part: str) -> str:
    """The part of a text as JSON has it."""
    return json.dumps(part, ensure_ascii=False)[1:-1]


def _marks(where: MessageWhere) -> list[Any]:
    terms: list[Any] = []
    for name in FLAGS:
        value = getattr(where, name)
        if value is not None:
            flag: Any = col(getattr(Message, name))
            terms.append(flag.is_(True) if value else UnaryExpression(flag, operator=_NOT))
    if where.keyword:
        words = cast(col(Message.keywords), String)
        terms.append(within(words, f'"{_written(where.keyword)}"'))
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


def uid_set(given: str) -> ColumnElement[bool]:
    """A set such as "1,3:15,40:*" as SQL; "*" is the highest there is."""
    parts = [part.strip() for part in given.split(",")]
    if len(parts) > UIDS:
        raise Invalid(f"a set has at most {UIDS} parts", constraint="max", path=["uids"])
    ranges: list[tuple[int, int]] = []
    open_: list[int] = []  # where those begin that end with "*"
    for part in parts:
        low, colon, high = part.partition(":")
        ends = [_end(end) for end in ((low, high) if colon else (low,))]
        known = [end for end in ends if end is not None]
        if None in ends:
            open_ += known or [HIGHEST]
        else:
            ranges.append((min(known), max(known)))
    return or_(*_between(ranges), *_from(open_))


def _between(ranges: list[tuple[int, int]]) -> list[ColumnElement[bool]]:
    """Ranges as SQL, those that meet as one, single numbers as a list."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    single = [low for low, high in joined if low == high]
    wide = [one for one in joined if one[0] != one[1]]
    if len(wide) > RANGES:
        raise Invalid(f"a set has at most {RANGES} ranges", constraint="max", path=["uids"])
    uid = col(Message.uid)
    terms: list[ColumnElement[bool]] = [uid.between(low, high) for low, high in wide]
    return [*terms, uid.in_(single)] if single else terms


def _from(lowest: list[int]) -> list[ColumnElement[bool]]:
    """Ranges up to "*" as SQL: the highest is in them even where it is below their beginning."""
    if not lowest:
        return []
    other = table_of(Message).alias("other")
    highest = (
        select(func.max(other.c.uid))
        .where(other.c.mailbox_id == col(Message.mailbox_id))
        .correlate(Message)
        .scalar_subquery()
    )
    return [col(Message.uid) >= min(lowest), col(Message.uid) == highest]


def _end(given: str) -> int | None:
    if given == "*":
        return None
    if given.isascii() and given.isdigit() and len(given) <= LONGEST and 0 < int(given) < HIGHEST:
        return int(given)
    raise Invalid('a set of uids is like "1,3:15,40:*"', constraint="pattern", path=["uids"])


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of the viewer: exactly one of ids, a folder, and a filter; uids narrow a folder."""

    ids: Sequence[int] | None = None
    mailbox: Named | None = None
    uids: str | None = None
    where: MessageWhere | None = None

    def condition(
        self, ctx: Context, terms: Sequence[ColumnElement[bool]], user_id: int
    ) -> list[ColumnElement[bool]]:
        """The selection as SQL, of messages for which these terms hold."""
        given = sum(part is not None for part in (self.ids, self.mailbox, self.where))
        if given != 1 or (self.uids is not None and self.mailbox is None):
            raise Invalid(
                "select by ids, by mailbox (with uids or whole), or by filter: by one of them",
                constraint="exclusive",
                path=["select"],
            )
        if self.ids is not None:
            return [*terms, col(Message.id).in_(self.ids)]
        where = self.where or MessageWhere(mailbox=self.mailbox, uids=self.uids)
        return narrowed(ctx, terms, where, user_id)

"""SQL conditions of message filters and of the selections of bulk operations."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    and_,
    case,
    cast,
    column,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlmodel import col

from mail.search.tokenizer import Every, Some, Sought
from mail.storage.blobs.tier_move import lies
from models.errors import Invalid
from models.files.blobs import Blob, StorageTier
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.store.columns import table_of
from models.store.query_hints import without_index
from models.store.text_folding import fold_text
from models.submission.tables import Submission
from resolvers.context import Context
from resolvers.mailboxes.loaders import Named
from resolvers.messages.filters.filter_lookups import READ, Looked, Place, looked, parts
from resolvers.messages.filters.message_filter import MessageWhere
from resolvers.messages.filters.sequence_sets import is_small_set, number_set
from resolvers.search.index_query import matching, narrows, sought_by
from resolvers.sql_text import within
from resolvers.users.selection import MINE, Users

TERMS = 250  # per filter; SQLite allows expressions of at most 1000 levels
TOO_MANY = f"a filter has at most {TERMS} terms"
GUIDS = 1000
GUID = re.compile("[0-9a-fA-F]{32}")
LARGEST = (1 << 63) - 1  # of a 64-bit ID
UNSEARCHED = (SpecialUse.JUNK, SpecialUse.TRASH)
FILE = ("filename", "content_type")  # the keys of a stored attachment
FLAGS = ("seen", "flagged", "answered", "draft", "deleted")
MARKS = (*FLAGS, "forwarded", "snoozed", "submission_states", "has_attachment", "tier")
PEOPLE = {
    "to": (Message.to, Message.cc),
    "to_only": (Message.to,),
    "cc": (Message.cc,),
    "bcc": (Message.bcc,),
    "recipient": (Message.to, Message.cc, Message.bcc, Message.envelope_to),
}
TIMES = {
    "received": col(Message.listed_at),
    "sent": col(Message.date),
    "saved": col(Message.saved_at),
    "expires": col(Message.expires),
}
_NOT = custom_op[Any]("NOT")  # as in the index of unseen messages: SQLite compares the SQL text


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A filter as SQL over messages of the accounts it was made for. Several lists can use it.

    `index_matches` is what the search index finds by `search_words`, which all messages must have.
    It is None if there are none.
    """

    seen: Looked
    words: Sought | None
    found: ColumnElement[bool] | None
    rest: Sequence[ColumnElement[bool]]
    by_key: bool = False  # a UID set or a thread finds the rows

    def with_terms(
        self, ctx: Context, terms: Sequence[ColumnElement[bool]]
    ) -> list[ColumnElement[bool]]:
        """Combine other conditions with those of the filter; the search index is asked first."""
        if self.found is None:
            return [*self.rest, without_index(*terms)] if self.by_key else [*terms, *self.rest]
        others = [*terms, *self.rest]
        if ctx.world.database.dialect != "sqlite":
            return [*others, self.found]
        # A CASE hides columns from the planner: SQLite would otherwise scan a whole mailbox,
        # and test for each message whether the index found it.
        return [self.found, case((and_(*others), 1), else_=0) == 1]


async def looked_at(ctx: Context, place: Place) -> Looked:
    """Look up what the filter of this scope needs before its statement."""
    (seen,) = (
        await looked(ctx, [place], lambda where, seen: conditions(ctx, where, seen))
    ).values()
    return seen


async def narrowed(ctx: Context, places: list[Place]) -> list[Narrowed]:
    """Build the filters of these scopes as SQL. Equal filters are built once."""
    seen = await looked(ctx, places, lambda where, seen: conditions(ctx, where, seen))
    made = {key: _narrowed(ctx, key[0], one) for key, one in seen.items()}
    return [made[place.where, place.archived] for place in places]


def _narrowed(ctx: Context, where: MessageWhere, seen: Looked) -> Narrowed:
    words, rest = divided(where)
    if words is None or not narrows(words):
        by_key = where.thread_id is not None or is_small_set(where.uids or "*")
        return Narrowed(seen, None, None, conditions(ctx, where, seen), by_key)
    found = matching(ctx, seen.waiting, words)
    return Narrowed(seen, words, found, conditions(ctx, rest, seen))


def conditions(ctx: Context, where: MessageWhere, seen: Looked) -> list[ColumnElement[bool]]:
    """Build the SQL of a filter over messages of the accounts in `lookups`.

    Raises InvalidInput for wrong values or too many conditions.
    """
    return list(_Terms(ctx, seen).of(where))


def check_values(where: MessageWhere) -> None:
    """Raise InvalidInput if `build_conditions` would refuse a value or their number."""
    many = 0
    for one in parts(where):
        if one.query:
            sought_by(one.query)
        for name in ("uids", "seqs"):
            if given := getattr(one, name):
                number_set(given, col(Message.uid), _highest_uid, name=name)
        for nth, text in enumerate(one.guids or ()):
            _guid(text, nth)
        many += 1 + sum(getattr(one, name) is not None for name in MessageWhere.__slots__)
    if many > TERMS:
        raise Invalid(TOO_MANY, constraint="max", path=["filter"])


def words_of(where: MessageWhere) -> Sought | None:
    """Return the search words of a filter that the index alone can answer, else None."""
    list(parts(where))  # checks the limits
    words, rest = divided(where)
    return words if words is not None and narrows(words) and rest.everything else None


def has_no_values(where: MessageWhere) -> bool:
    """True if the filter tests only flags, so that its SQL is always the same."""
    unmarked: dict[str, Any] = {**dict.fromkeys((*MARKS, "every", "some", "none"))}
    return all(one.everything or replace(one, **unmarked).everything for one in parts(where))


def divided(where: MessageWhere) -> tuple[Sought | None, MessageWhere]:
    """Split a filter into the search words all its messages have, and the other conditions."""
    words: list[Sought] = [sought_by(where.query)] if where.query else []
    every = []
    for one in where.every or ():
        theirs, rest = divided(one)
        words += [theirs] if theirs else []
        every += [] if rest.everything else [rest]
    some = [divided(one) for one in where.some or ()]
    kept = where.some
    if some and all(theirs and narrows(theirs) for theirs, _ in some):
        words.append(Some(tuple(theirs for theirs, _ in some if theirs)))
        kept = None if all(rest.everything for _, rest in some) else where.some
    kept_every = tuple(every) or (None if where.every else where.every)
    rest = replace(where, query=None, every=kept_every, some=kept)
    return (Every(tuple(words)) if len(words) > 1 else words[0] if words else None), rest


@dataclass(slots=True)
class _Terms:
    """Builds the SQL of a filter, and counts its terms."""

    ctx: Context
    seen: Looked
    many: int = field(default=0, init=False)  # conditions built so far

    def of(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms = [*self._words(where), *_texts(where), *_marks(where), *_ranges(where)]
        terms += self._places(where)
        if where.attachment:
            terms.append(self._attachment(*where.attachment))
        self.many += len(terms) + 1
        if self.many > TERMS:
            raise Invalid(TOO_MANY, constraint="max", path=["filter"])
        return [*self._groups(where), *terms]

    def _groups(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms = [self._all(one) for one in where.every or ()]
        if where.every == ():
            terms.append(false())
        if where.some is not None:
            terms.append(or_(false(), *(self._all(one) for one in where.some)))
        if where.none is not None:  # a NULL condition counts as not fulfilled
            terms.append(func.coalesce(self._all(where.none), false()).is_(false()))
        return terms

    def _all(self, where: MessageWhere) -> ColumnElement[bool]:
        return and_(true(), *self.of(where))

    def _words(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        if where.query:
            terms.append(matching(self.ctx, self.seen.waiting, sought_by(where.query)))
        for name in READ:
            asked = getattr(where, name)
            if asked is not None:
                terms.append(col(Message.id).in_(self.seen.found[name, asked]))
        return terms

    def _places(self, where: MessageWhere) -> list[ColumnElement[bool]]:
        terms: list[ColumnElement[bool]] = []
        archived = self.seen.archived
        mailbox = col(Message.archived_mailbox_id if archived else Message.mailbox_id)
        if where.mailbox:
            terms.append(mailbox.in_(self._mailbox(where.mailbox)))
        if where.mailboxes is not None:
            terms.append(
                or_(false(), *(mailbox.in_(self._mailbox(name)) for name in where.mailboxes))
            )
        if where.mailbox_masks is not None:
            keys = {key for mask in where.mailbox_masks for key in self.seen.boxes[mask]}
            terms.append(mailbox.in_(keys))
        if where.searchable is not None:
            hidden = self._theirs().where(col(Mailbox.special_use).in_(UNSEARCHED))
            terms.append(mailbox.not_in(hidden) if where.searchable else mailbox.in_(hidden))
        if where.thread_id is not None:
            terms.append(col(Message.thread_id) == where.thread_id)
        if where.uids is not None:
            terms.append(number_set(where.uids, col(Message.uid), _highest_uid, name="uids"))
        if where.seqs is not None and where.mailbox:
            terms.append(self._at(where.seqs, where.mailbox))
        return terms

    def _theirs(self) -> Select[int]:
        return select(col(Mailbox.id)).where(col(Mailbox.user_id).in_(self.seen.waiting.owners))

    def _mailbox(self, name: Named) -> Select[int]:
        if name.id is not None:
            return self._theirs().where(col(Mailbox.id) == name.id)
        if name.path is not None:
            return self._called(name.path)
        return self._theirs().where(col(Mailbox.special_use) == name.special_use)

    def _called(self, path: str) -> Select[int]:
        """Select the mailbox with this path.

        If an account has none, its mailboxes with the same folded path are selected.
        """
        exact = table_of(Mailbox).alias("exact")
        there = exists(select(1).where(
            exact.c.user_id == col(Mailbox.user_id), exact.c.path == path,
        ))  # fmt: skip
        return self._theirs().where(
            or_(
                col(Mailbox.path) == path,
                and_(not_(there), func.fold_text(col(Mailbox.path)) == fold_text(path)),
            )
        )

    def _at(self, given: str, name: Named) -> ColumnElement[bool]:
        """Build the condition on sequence numbers in a mailbox, counted from 1."""
        rows = table_of(Message).alias("placed")
        place = func.row_number().over(partition_by=rows.c.mailbox_id, order_by=rows.c.uid)
        many = func.count().over(partition_by=rows.c.mailbox_id)
        placed = (
            select(rows.c.id, place.label("place"), many.label("many"))
            .where(rows.c.mailbox_id.in_(self._mailbox(name)))
            .subquery()
        )
        chosen = number_set(given, placed.c.place, lambda: placed.c.many, name="seqs")
        return col(Message.id).in_(select(placed.c.id).where(chosen))

    def _attachment(self, filename: str | None, kind: str | None) -> ColumnElement[bool]:
        """Build the condition that an attachment's name and type contain these texts."""
        files: Any = col(Message.attachments)
        if self.ctx.world.database.dialect == "sqlite":
            each = func.json_each(files).table_valued("value", name="file")
            value = [func.json_extract(each.c.value, f"$.{key}") for key in FILE]
        else:
            each = func.jsonb_array_elements(files).table_valued(
                column("value", postgresql.JSONB), name="file"
            )
            value = [each.c.value[key].as_string() for key in FILE]
        asked = [
            within(func.coalesce(known, "", type_=String), part)
            for known, part in zip(value, (filename, kind), strict=True)
            if part
        ]
        return exists(select(1).select_from(each).where(*asked)) if asked else files_there()


def people(*columns: Any) -> ColumnElement[str]:
    """Build one SQL text of all people in these columns. A missing name is not the text "null"."""
    listed: list[Any] = [
        func.replace(cast(col(column), String), "[null,", "[", type_=String) for column in columns
    ]
    whole: ColumnElement[str] = listed[0]
    for one in listed[1:]:
        whole = whole + one
    return whole


def _texts(where: MessageWhere) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    if where.from_:
        name, address = col(Message.from_name), col(Message.from_address)
        sender = func.coalesce(name, "") + " " + func.coalesce(address, "")
        terms.append(within(sender, where.from_))
    for field_, columns in PEOPLE.items():
        if asked := getattr(where, field_):
            terms.append(within(people(*columns), _written(asked)))
    if where.subject:
        terms.append(within(col(Message.subject), where.subject))
    if where.list_id:
        known: Any = col(Message.mailing_list)
        terms.append(within(func.coalesce(known["id"].as_string(), ""), where.list_id))
    if where.message_id:
        terms.append(col(Message.message_id) == where.message_id)
    if where.guids is not None:
        terms.append(
            col(Message.id).in_([_guid(text, nth) for nth, text in enumerate(where.guids)])
        )
    return terms


def _guid(text: str, nth: int) -> int:
    """Return the message ID that a GUID encodes. Raises InvalidInput."""
    if nth >= GUIDS:
        raise Invalid(f"at most {GUIDS} guids", constraint="max", path=["filter", "guids"])
    if not GUID.fullmatch(text):
        words = "a guid has 32 hex digits"
        raise Invalid(words, constraint="pattern", path=["filter", "guids"], index=nth)
    return min(int(text, 16), LARGEST)


def _written(part: str) -> str:
    """Return the text in its form inside a JSON string."""
    return json.dumps(part, ensure_ascii=False)[1:-1]


def _marks(where: MessageWhere) -> list[Any]:
    terms: list[Any] = []
    for name in FLAGS:
        value = getattr(where, name)
        if value is not None:
            flag: Any = col(getattr(Message, name))
            terms.append(flag.is_(True) if value else UnaryExpression(flag, operator=_NOT))
    words = cast(col(Message.keywords), String)
    if where.keyword:
        terms.append(within(words, f'"{_written(where.keyword)}"'))
    if where.forwarded is not None:
        forwarded = func.lower(words).contains('"$forwarded"', autoescape=True)
        terms.append(forwarded if where.forwarded else not_(forwarded))
    if where.snoozed is not None:
        until = col(Message.snoozed_until)
        terms.append(until.is_not(None) if where.snoozed else until.is_(None))
    if where.submission_states is not None:
        sent = select(col(Submission.id)).where(
            col(Submission.message_id) == col(Message.id),
            col(Submission.state).in_(where.submission_states),
        )
        terms.append(sent.correlate(Message).exists())
    if where.tier is not None:
        mine = col(Blob.id) == col(Message.blob_id)
        far = select(col(Blob.id)).where(mine, lies(cold=True)).correlate(Message).exists()
        terms.append(far if where.tier is StorageTier.COLD else not_(far))
    if where.has_attachment is not None:
        terms.append(files_there() if where.has_attachment else not_(files_there()))
    return terms


def files_there() -> ColumnElement[bool]:
    """Build the condition that a message has attachments."""
    return col(Message.attachment_count) > 0


def _ranges(where: MessageWhere) -> list[ColumnElement[bool]]:
    terms: list[ColumnElement[bool]] = []
    for name, moment in TIMES.items():
        if since := getattr(where, f"{name}_since", None):
            terms.append(moment >= since)
        if before := getattr(where, f"{name}_before"):
            terms.append(moment < before)
    if where.larger is not None:
        terms.append(col(Message.size) > where.larger)
    if where.smaller is not None:
        terms.append(col(Message.size) < where.smaller)
    if where.modified_since is not None:
        terms.append(col(Message.modseq) > where.modified_since)
    return terms


def _highest_uid() -> Any:
    other = table_of(Message).alias("other")
    return (
        select(func.max(other.c.uid))
        .where(other.c.mailbox_id == col(Message.mailbox_id))
        .correlate(Message)
        .scalar_subquery()
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of accounts, by exactly one of IDs, mailbox and conditions.

    UIDs narrow a mailbox. The mailbox is that of each account.
    """

    ids: Sequence[int] | None = None
    mailbox: Named | None = None
    uids: str | None = None
    where: MessageWhere | None = None
    users: Users = MINE
    narrowed: Narrowed | None = None

    async def looked(self, ctx: Context, owners: Sequence[int]) -> "Selection":
        """Return the selector with the SQL of its filter.

        Raises InvalidInput unless one way is used.
        """
        given = sum(part is not None for part in (self.ids, self.mailbox, self.where))
        if given != 1 or (self.uids is not None and self.mailbox is None):
            raise Invalid(
                "select by ids, by mailbox (with uids or whole), or by filter: by one of them",
                constraint="exclusive",
                path=["select"],
            )
        if self.ids is not None or not owners:
            return self
        where = self.where or MessageWhere(mailbox=self.mailbox, uids=self.uids)
        found, *_ = await narrowed(ctx, [Place(where, owner) for owner in owners])
        return replace(self, narrowed=found)

    def condition(
        self, ctx: Context, terms: Sequence[ColumnElement[bool]]
    ) -> list[ColumnElement[bool]]:
        """Build the SQL of the selection, combined with these conditions."""
        if self.narrowed is None:
            return [*terms, col(Message.id).in_(self.ids or ())]
        return self.narrowed.with_terms(ctx, terms)

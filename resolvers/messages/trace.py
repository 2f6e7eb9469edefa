"""The trace of a message: recorded steps, and the state of its queue entries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, true
from sqlmodel import col

from mail.addresses.address_syntax import normal, normal_domain
from mail.storage import message_trace
from mail.storage.message_trace import cut, search_key
from mail.text.storable_text import storable
from models.errors import Invalid
from models.messages.message_trace import LogComponent, MessageStep
from models.queue.tables import Delivery, DeliveryState, answer
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.store.query_hints import without_index
from models.submission.tables import Submission
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import overseen_users
from resolvers.context import Context
from resolvers.pagination import Scan

MOST = 1000  # of steps, submissions and queue entries each
LONGEST = 1000  # characters of a search text
STEP = (
    "at", "queue_id", "message_id", "component", "event", "detail", "address", "sender",
    "stored_message_id",
)  # fmt: skip
SUBMISSION = ("id", "queue_id", "envelope_from", "copy_of", "created_at", "message_id")
PLACE = (col(MessageStep.at), col(MessageStep.id))
NEWEST = "trace-newest"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a message. `address` is that of the recipient, `sender` that of the envelope."""

    at: datetime
    queue_id: str
    component: LogComponent
    event: str
    detail: str | None = None
    address: str | None = None
    sender: str | None = None
    stored_message_id: int | None = None  # the message that was stored or sent


@dataclass(frozen=True, slots=True)
class TraceWhere:
    """Conditions of a list of steps; all must hold.

    Texts are an address, or a domain with or without "@".
    """

    sender: str | None = None
    recipient: str | None = None
    since: datetime | None = None  # inclusive
    before: datetime | None = None  # exclusive

    def terms(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clause. `validate_trace_filter` must have accepted the conditions."""
        found = self._addresses()
        if self.since is not None:
            found.append(col(MessageStep.at) >= self.since)
        if self.before is not None:
            found.append(col(MessageStep.at) < self.before)
        return found

    def _addresses(self) -> list[ColumnElement[bool]]:
        """Return the conditions on sender and recipient.

        A domain beside an address uses no index.
        """
        whole, domains = list[ColumnElement[bool]](), list[ColumnElement[bool]]()
        for name, address_column, domain_column in (
            ("sender", MessageStep.sender_compared, MessageStep.sender_domain),
            ("recipient", MessageStep.compared, MessageStep.recipient_domain),
        ):
            text: str | None = getattr(self, name)
            if text is None:
                continue
            local, _, domain = text.strip().rpartition("@")
            if local:
                whole.append(col(address_column) == search_key(text))
            else:
                domains.append(col(domain_column) == cut(normal_domain(domain)))
        return [*whole, without_index(*domains)] if whole and domains else [*whole, *domains]


@dataclass(frozen=True, slots=True)
class TraceListing:
    """A page of steps, newest first."""

    ask: Ask
    where: TraceWhere


async def pages(ctx: Context, keys: list[TraceListing]) -> list[Page[Picked]]:
    """Load pages of the steps that the viewer can see, newest first."""
    await message_trace.settle(ctx.world)
    scans = []
    for key in keys:
        terms = _list_conditions(ctx, key.where)
        rows = select(*picked(MessageStep, {"id", *STEP})).where(*terms)
        scans.append(Scan(rows, key.ask, PLACE, falling=True))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[TraceListing]) -> list[int]:
    """Count the steps of these lists."""
    many = func.count().label("many")
    scans = [
        select(many).select_from(MessageStep).where(*_list_conditions(ctx, key.where))
        for key in keys
    ]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


def check_trace_filter(ctx: Context, where: TraceWhere) -> None:
    """Raise InvalidInput if a text is no address or domain, or the time range is empty.

    Also if a DOMAIN_ADMIN filters by time alone: most steps in it may belong to other domains, and
    all of them would be read.
    """
    for name, text in (("sender", where.sender), ("recipient", where.recipient)):
        if text is not None and not _is_address_or_domain(text):
            words = f"{name} must be an address or a domain of at most {LONGEST} characters"
            raise Invalid(words, constraint="address", path=["filter", name])
    if where.since and where.before and where.since >= where.before:
        words = "since must be earlier than before"
        raise Invalid(words, constraint="range", path=["filter", "since"])
    is_time_alone = where.sender is None and where.recipient is None
    if is_time_alone and not ctx.viewer.role.includes(Role.ADMIN):
        words = "name a sender or a recipient; only an ADMIN can search by time alone"
        raise Invalid(words, constraint="required", path=["filter"])


def _is_address_or_domain(text: str) -> bool:
    """True if the text can be one. Addresses of other servers follow no stricter rule."""
    domain = text.strip().rpartition("@")[2]
    is_text = len(text) <= LONGEST and text.isprintable() and storable(text) == text
    return is_text and " " not in domain and bool(normal_domain(domain))


def _list_conditions(ctx: Context, where: TraceWhere) -> list[ColumnElement[bool]]:
    """Return the WHERE clause of a list, limited to what the viewer can see."""
    terms = where.terms()
    if ctx.viewer.role.includes(Role.ADMIN):
        return terms
    received = col(MessageStep.submission_id).is_(None) & _domains(ctx)
    return [*terms, received | _sent_by_overseen(ctx)]


def _sent_by_overseen(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that a step belongs to a submission that the viewer can see."""
    sent = select(col(Submission.id)).where(
        col(Submission.id) == col(MessageStep.submission_id), _submissions(ctx)
    )
    return sent.correlate(MessageStep).exists()


@dataclass(frozen=True, slots=True)
class Sought:
    """A queue ID or a Message-ID.

    With a recipient, only the steps of that recipient are returned.
    """

    queue_id: str | None = None
    message_id: str | None = None
    address: str | None = None


async def trace(ctx: Context, sought: Sought) -> list[Step]:
    """Load the steps of a message that the viewer can see, by time.

    A queue ID also returns the steps of its submissions. Steps of other domains are left out.
    Raises InvalidInput.
    """
    sought = _checked(sought)
    await message_trace.settle(ctx.world)
    steps = await _written(ctx, sought)
    known = {row.message_id for row in steps if row.message_id}
    found = [Step(**_of(row)) for row in steps]
    found += [step for step in await _queue(ctx, sought, known) if _about(step, sought.address)]
    return sorted(found, key=lambda step: step.at)


def _checked(sought: Sought) -> Sought:
    """Return the request in its stored form. Raises InvalidInput."""
    if (sought.queue_id is None) is (sought.message_id is None):
        words = "give queueId or messageId; messageTraceEvents finds messages by address and time"
        raise Invalid(words, constraint="exclusive", path=["messageId"])
    for name, value in (("queueId", sought.queue_id), ("messageId", sought.message_id)):
        if value is not None and not 0 < len(value.strip()) <= LONGEST:
            words = f"from 1 to {LONGEST} characters"
            raise Invalid(words, constraint="length", path=[name])
    if len(sought.address or "") > LONGEST:
        words = f"at most {LONGEST} characters"
        raise Invalid(words, constraint="length", path=["address"])
    message_id = sought.message_id and sought.message_id.strip()
    if message_id and not message_id.startswith("<"):
        message_id = f"<{message_id}>"
    queue_id = sought.queue_id and cut(sought.queue_id.strip())
    return Sought(queue_id, cut(message_id), cut(sought.address))


def _of(row: Picked) -> dict[str, Any]:
    return {name: getattr(row, name) for name in STEP if name != "message_id"}


def _about(step: Step, address: str | None) -> bool:
    """True if a step is about this recipient, or about all recipients."""
    if not address or step.address is None:
        return True
    return normal(step.address) == normal(address)


async def _written(ctx: Context, sought: Sought) -> Sequence[Picked]:
    of = col(MessageStep.queue_id), col(MessageStep.message_id)
    wanted = of[0] == sought.queue_id if sought.queue_id else of[1] == sought.message_id
    statement = select(*picked(MessageStep, STEP)).where(
        wanted, col(MessageStep.submission_id).is_(None), _domains(ctx)
    )
    if sought.address:
        statement = statement.where(col(MessageStep.compared) == search_key(sought.address))
    return await ctx.read(statement.order_by(col(MessageStep.at), col(MessageStep.id)).limit(MOST))


def _domains(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that a step is of a domain the viewer administers; all for an ADMIN."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    return col(MessageStep.domain_id).in_(ctx.viewer.administers)


def _submissions(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a submission.

    These are submissions of visible users, and forwards that the platform sends for the viewer's
    domains.
    """
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    theirs = select(col(User.id)).where(overseen_users(ctx))
    ours = col(Submission.user_id).is_(None) & col(Submission.tenant_id).in_(ctx.viewer.administers)
    return or_(col(Submission.user_id).in_(theirs), ours)


async def _queue(ctx: Context, sought: Sought, known: set[str]) -> list[Step]:
    """Load the steps of submissions, by queue ID and by Message-ID."""
    names = {sought.message_id} if sought.message_id else known
    linked = select(col(MessageStep.submission_id)).where(
        col(MessageStep.message_id).in_(names), col(MessageStep.submission_id).is_not(None)
    )
    rows = await ctx.read(
        select(*picked(Submission, SUBMISSION))
        .where(
            or_(col(Submission.id).in_(linked), col(Submission.queue_id) == sought.queue_id),
            _submissions(ctx),
        )
        .order_by(col(Submission.created_at), col(Submission.id))
        .limit(MOST)
    )
    if not rows:
        return []
    statement = select(*picked(Delivery)).where(
        col(Delivery.submission_id).in_([r.id for r in rows])
    )
    parts: dict[int, list[Picked]] = {}
    for each in await ctx.read(statement.order_by(col(Delivery.id)).limit(MOST)):
        parts.setdefault(each.submission_id, []).append(each)
    return [step for row in rows for step in _sent(row, parts.get(row.id, ()))]


def _sent(row: Picked, deliveries: Sequence[Picked]) -> Iterator[Step]:
    """Yield the step of a submission, and the state of each of its queue entries."""
    event = "queued" if row.copy_of is None else "copied"
    said = f"from <{row.envelope_from}>"
    of = {"sender": row.envelope_from or None, "stored_message_id": row.message_id}
    yield Step(row.created_at, row.queue_id, LogComponent.MTA, event, said, **of)
    for each in deliveries:
        at = each.reported_at or each.delivered_at or row.created_at
        state, said = DeliveryState(each.state).lower(), _said(each)
        yield Step(at, row.queue_id, LogComponent.MTA, state, said, each.recipient, **of)


def _reporter(row: Picked) -> str | None:
    """Return who reported after the handover, and whether the report is proven.

    None without a report.
    """
    if row.reported_at is None:
        return None
    evidence = "proven" if row.report_proven else "unproven"
    return f"{row.reported_by or 'a server'} ({evidence})"


def _said(row: Picked) -> str:
    """Return the detail text of a queue entry."""
    facts = {
        "via": row.via,
        "attempts": row.attempts,
        "by": row.mx,
        "answer": answer(row),
        "reported by": _reporter(row),
        "next": row.next_at and row.next_at.isoformat(),
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)

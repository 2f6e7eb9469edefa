"""The trace of a message: recorded steps, and the state of its queue entries."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select, true
from sqlmodel import col

from mail.addresses.address_syntax import normalized_address, normalized_domain
from mail.storage import message_trace
from mail.storage.message_trace import search_key, stored_text
from mail.text.storable_text import make_storable
from models.errors import InvalidInput
from models.logs.entries import LogComponent
from models.messages.message_trace import DeliveryTraceEventKind, DeliveryTraceStep
from models.queue.tables import QueueEntry, last_reply
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.query_hints import without_index
from models.submission.tables import Submission
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_overseen_user
from resolvers.context import Context
from resolvers.list_orders import ListOrder, SortColumn, list_orders, read_list_pages


class DeliveryTraceStepOrder(StrEnum):
    """The order of a list of steps; ties by id."""

    AT_ASC = "AT_ASC"
    AT_DESC = "AT_DESC"


LIST_ORDERS = list_orders(DeliveryTraceStepOrder, {"AT": SortColumn("at", datetime)})

MAX_ROWS = 1000  # steps, submissions and queue entries of one message, each
MAX_TEXT_LENGTH = 1000  # characters of a search text
STEP_COLUMNS = (
    "id", "at", "queue_id", "message_id", "component", "event", "detail", "address",
    "sender", "stored_message_id",
)  # fmt: skip
SUBMISSION_COLUMNS = ("id", "queue_id", "envelope_from", "copy_of", "created_at", "message_id")


@dataclass(frozen=True, slots=True)
class MessageTraceStep:
    """One step of a message. `address` is that of the recipient, `sender` that of the envelope."""

    id: int  # of the recorded step, the submission or the queue entry
    at: datetime
    queue_id: str
    component: LogComponent
    event: DeliveryTraceEventKind
    detail: str | None = None
    address: str | None = None
    sender: str | None = None
    stored_message_id: int | None = None  # the message that was stored or sent


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Conditions of a list of steps; all must hold.

    `sender` and `recipient` are an address, or a domain with or without "@".
    """

    queue_id: str | None = None
    message_id_header: str | None = None  # with or without angle brackets
    sender: str | None = None
    recipient: str | None = None
    since: datetime | None = None  # inclusive
    before: datetime | None = None  # exclusive

    @property
    def names_message(self) -> bool:
        """True if the conditions name one message."""
        return self.queue_id is not None or self.message_id_header is not None

    @property
    def message_condition(self) -> ColumnElement[bool]:
        """The condition that a recorded step is one of the named message."""
        if self.queue_id is not None:
            return col(DeliveryTraceStep.queue_id) == stored_text(self.queue_id.strip())
        return col(DeliveryTraceStep.message_id) == self.stored_message_id

    @property
    def stored_message_id(self) -> str | None:
        """The Message-ID of the named message as steps store it. None: no Message-ID is given."""
        message_id = (self.message_id_header or "").strip()
        if message_id and not message_id.startswith("<"):
            message_id = f"<{message_id}>"
        return stored_text(message_id)

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the WHERE clause. `validate_trace_filter` must have accepted the conditions.

        The named message is not in it.
        """
        clauses = self._address_conditions()
        if self.since is not None:
            clauses.append(col(DeliveryTraceStep.at) >= self.since)
        if self.before is not None:
            clauses.append(col(DeliveryTraceStep.at) < self.before)
        return clauses

    def _address_conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions on sender and recipient.

        A domain beside an address uses no index.
        """
        whole_addresses, domains = list[ColumnElement[bool]](), list[ColumnElement[bool]]()
        for name, address_column, domain_column in (
            (
                "sender",
                DeliveryTraceStep.normalized_sender_address,
                DeliveryTraceStep.sender_domain,
            ),
            ("recipient", DeliveryTraceStep.normalized_address, DeliveryTraceStep.recipient_domain),
        ):
            text: str | None = getattr(self, name)
            if text is None:
                continue
            local, _, domain = text.strip().rpartition("@")
            if local:
                whole_addresses.append(col(address_column) == search_key(text))
            else:
                domains.append(col(domain_column) == stored_text(normalized_domain(domain)))
        return (
            [*whole_addresses, without_index(*domains)]
            if whole_addresses and domains
            else [*whole_addresses, *domains]
        )


@dataclass(frozen=True, slots=True)
class TraceListing:
    """A page of steps."""

    page_request: PageRequest
    order: ListOrder
    filter: TraceFilter
    columns: frozenset[str] = frozenset(STEP_COLUMNS)


async def load_visible_trace_step_pages(
    ctx: Context, listings: list[TraceListing]
) -> list[Page[Any]]:
    """Load pages of the steps that the viewer can see.

    Raises InvalidInput for a cursor of another order.
    """
    await message_trace.write_pending_trace_steps(ctx.environment)
    recorded = [listing for listing in listings if not listing.filter.names_message]
    pages_of_recorded = iter(
        await read_list_pages(ctx, DeliveryTraceStep, recorded, _select_visible_steps)
        if recorded
        else ()
    )
    return [
        _page_of_steps(await _load_steps_of_message(ctx, listing.filter), listing)
        if listing.filter.names_message
        else next(pages_of_recorded)
        for listing in listings
    ]


def _page_of_steps(
    steps: Sequence[MessageTraceStep], listing: TraceListing
) -> Page[MessageTraceStep]:
    """Return the page of all steps of one message. Raises InvalidInput as for other pages."""
    request, order = listing.page_request, listing.order
    order.require_fitting_cursor(request)
    is_ascending_scan = request.is_backward is order.is_descending
    rows: Sequence[MessageTraceStep] = sorted(steps, key=_sort_key)
    if cursor := request.cursor:
        cursor_key = cursor.sort_value, cursor.id
        rows = pagination.rows_beyond_cursor(
            rows, [*map(_sort_key, rows)], cursor_key, is_backward=not is_ascending_scan
        )
    return pagination.page_from_rows(rows if is_ascending_scan else rows[::-1], request)


def _sort_key(step: MessageTraceStep) -> tuple[datetime, int]:
    return step.at, step.id


def _select_visible_steps(
    ctx: Context, listing: TraceListing, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(DeliveryTraceStep, columns)).where(
        *_list_conditions(ctx, listing.filter)
    )


async def count_visible_trace_steps(ctx: Context, listings: list[TraceListing]) -> list[int]:
    """Count the steps of these lists."""
    step_count = func.count().label("many")
    scans = [
        select(step_count).select_from(DeliveryTraceStep).where(*_list_conditions(ctx, key.filter))
        for key in listings
        if not key.filter.names_message
    ]
    recorded_counts = iter(await pagination.read_union(ctx, scans) if scans else ())
    return [
        len(await _load_steps_of_message(ctx, key.filter))
        if key.filter.names_message
        else next(recorded_counts)[0].many
        for key in listings
    ]


def validate_trace_filter(ctx: Context, trace_filter: TraceFilter) -> None:
    """Raise InvalidInput if a text has the wrong form, or the time range is empty.

    Also if a DOMAIN_ADMIN filters by time alone: most steps in it may belong to other domains, and
    all of them would be read.
    """
    _validate_message_names(trace_filter)
    for name, text in (("sender", trace_filter.sender), ("recipient", trace_filter.recipient)):
        if text is not None and not _is_address_or_domain(text):
            error_text = (
                f"`{name}` must be an address or a domain of at most {MAX_TEXT_LENGTH} characters."
            )
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.ADDRESS, path=["filter", name]
            )
    if trace_filter.since and trace_filter.before and trace_filter.since >= trace_filter.before:
        error_text = "`since` must be earlier than `before`."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.RANGE, path=["filter", "since"]
        )
    is_time_alone = (
        not trace_filter.names_message
        and trace_filter.sender is None
        and trace_filter.recipient is None
    )
    if is_time_alone and not ctx.viewer.role.includes(Role.ADMIN):
        error_text = (
            "A queue ID, Message-ID, sender or recipient is required: only an ADMIN can search by "
            "time alone."
        )
        raise InvalidInput(error_text, constraint=ValidationConstraint.REQUIRED, path=["filter"])


def _validate_message_names(trace_filter: TraceFilter) -> None:
    """Raise InvalidInput if the queue ID or Message-ID has the wrong length, or both are given."""
    if trace_filter.queue_id is not None and trace_filter.message_id_header is not None:
        raise InvalidInput(
            "`queueId` and `messageIdHeader` can't be combined.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["filter", "messageIdHeader"],
        )
    for name, value in (
        ("queueId", trace_filter.queue_id),
        ("messageIdHeader", trace_filter.message_id_header),
    ):
        if value is not None and not 0 < len(value.strip()) <= MAX_TEXT_LENGTH:
            error_text = f"Must have from 1 to {MAX_TEXT_LENGTH} characters."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.LENGTH, path=["filter", name]
            )


def _is_address_or_domain(text: str) -> bool:
    """True if the text can be one. Addresses of other servers follow no stricter rule."""
    domain = text.strip().rpartition("@")[2]
    is_text = len(text) <= MAX_TEXT_LENGTH and text.isprintable() and make_storable(text) == text
    return is_text and " " not in domain and bool(normalized_domain(domain))


def _list_conditions(ctx: Context, trace_filter: TraceFilter) -> list[ColumnElement[bool]]:
    """Return the WHERE clause of a list, limited to what the viewer can see."""
    terms = trace_filter.conditions()
    if ctx.viewer.role.includes(Role.ADMIN):
        return terms
    received = col(DeliveryTraceStep.submission_id).is_(None) & _is_of_administered_domain_sql(ctx)
    return [*terms, received | _is_step_of_visible_submission_sql(ctx)]


def _is_step_of_visible_submission_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that a step belongs to a submission that the viewer can see."""
    visible_submissions = select(col(Submission.id)).where(
        col(Submission.id) == col(DeliveryTraceStep.submission_id), _is_visible_submission_sql(ctx)
    )
    return visible_submissions.correlate(DeliveryTraceStep).exists()


async def _load_steps_of_message(ctx: Context, trace_filter: TraceFilter) -> list[MessageTraceStep]:
    """Load the steps of the named message that the viewer can see and the filter accepts.

    These are the recorded steps of its receipt, and the present state of the submissions with its
    Message-ID and of their queue entries. MAX_ROWS limits each.
    """
    statement = select(*select_columns(DeliveryTraceStep, STEP_COLUMNS)).where(
        trace_filter.message_condition,
        col(DeliveryTraceStep.submission_id).is_(None),
        _is_of_administered_domain_sql(ctx),
        *trace_filter.conditions(),
    )
    rows = await ctx.read(
        statement.order_by(col(DeliveryTraceStep.at), col(DeliveryTraceStep.id)).limit(MAX_ROWS)
    )
    submission_steps = await _load_submission_steps(ctx, trace_filter)
    return [
        *(MessageTraceStep(**_step_values(row)) for row in rows),
        *(step for step in submission_steps if _is_accepted(step, trace_filter)),
    ]


def _step_values(row: ColumnRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in STEP_COLUMNS if name != "message_id"}


def _is_accepted(step: MessageTraceStep, trace_filter: TraceFilter) -> bool:
    """True if the filter accepts a step. A step that concerns all recipients has each of them."""
    return (
        (trace_filter.since is None or step.at >= trace_filter.since)
        and (trace_filter.before is None or step.at < trace_filter.before)
        and (trace_filter.sender is None or _has_address(step.sender or "", trace_filter.sender))
        and (
            trace_filter.recipient is None
            or step.address is None
            or _has_address(step.address, trace_filter.recipient)
        )
    )


def _has_address(address: str, text: str) -> bool:
    """True if an address is the one of a condition, or in its domain."""
    local, _, domain = text.strip().rpartition("@")
    normalized = normalized_address(address)
    return (
        normalized == normalized_address(text)
        if local
        else normalized[1] == normalized_domain(domain)
    )


def _is_of_administered_domain_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that a step is of a domain the viewer administers; all for an ADMIN."""
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    return col(DeliveryTraceStep.domain_id).in_(ctx.viewer.administered_domains)


def _is_visible_submission_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a submission.

    These are submissions of visible users, and messages that the platform sends for the viewer's
    domains.
    """
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    overseen_user_ids = select(col(User.id)).where(is_overseen_user(ctx))
    is_of_domain = col(Submission.user_id).is_(None) & col(Submission.domain_id).in_(
        ctx.viewer.administered_domains
    )
    return or_(col(Submission.user_id).in_(overseen_user_ids), is_of_domain)


async def _load_submission_steps(ctx: Context, trace_filter: TraceFilter) -> list[MessageTraceStep]:
    """Load the steps of submissions, by queue ID and by Message-ID."""
    message_ids: Any = [trace_filter.stored_message_id]
    if trace_filter.queue_id is not None:
        message_ids = (
            select(col(DeliveryTraceStep.message_id))
            .where(
                trace_filter.message_condition,
                col(DeliveryTraceStep.submission_id).is_(None),
                _is_of_administered_domain_sql(ctx),
            )
            .correlate(None)
        )
    linked = select(col(DeliveryTraceStep.submission_id)).where(
        col(DeliveryTraceStep.message_id).in_(message_ids),
        col(DeliveryTraceStep.submission_id).is_not(None),
    )
    queue_id = stored_text((trace_filter.queue_id or "").strip())
    rows = await ctx.read(
        select(*select_columns(Submission, SUBMISSION_COLUMNS))
        .where(
            or_(col(Submission.id).in_(linked), col(Submission.queue_id) == queue_id),
            _is_visible_submission_sql(ctx),
        )
        .order_by(col(Submission.created_at), col(Submission.id))
        .limit(MAX_ROWS)
    )
    if not rows:
        return []
    statement = select(*select_columns(QueueEntry)).where(
        col(QueueEntry.submission_id).in_([r.id for r in rows])
    )
    parts: dict[int, list[ColumnRow]] = {}
    for entry_row in await ctx.read(statement.order_by(col(QueueEntry.id)).limit(MAX_ROWS)):
        parts.setdefault(entry_row.submission_id, []).append(entry_row)
    return [step for row in rows for step in _steps_of_submission(row, parts.get(row.id, ()))]


def _steps_of_submission(
    submission: ColumnRow, deliveries: Sequence[ColumnRow]
) -> Iterator[MessageTraceStep]:
    """Yield the step of a submission, and the state of each of its queue entries."""
    event = (
        DeliveryTraceEventKind.QUEUED
        if submission.copy_of is None
        else DeliveryTraceEventKind.COPIED
    )
    sender_text = f"from <{submission.envelope_from}>"
    step_values = {
        "sender": submission.envelope_from or None,
        "stored_message_id": submission.message_id,
    }
    yield MessageTraceStep(
        submission.id,
        submission.created_at,
        submission.queue_id,
        LogComponent.MTA,
        event,
        sender_text,
        **step_values,
    )
    for delivery in deliveries:
        at = delivery.reported_at or delivery.delivered_at or submission.created_at
        state, sender_text = DeliveryTraceEventKind(delivery.state), _delivery_detail(delivery)
        yield MessageTraceStep(
            delivery.id,
            at,
            submission.queue_id,
            LogComponent.MTA,
            state,
            sender_text,
            delivery.recipient,
            **step_values,
        )


def _dsn_reporter_and_proof(queue_entry: ColumnRow) -> str | None:
    """Return who reported after the handover, and whether the report is proven.

    None without a report.
    """
    if queue_entry.reported_at is None:
        return None
    evidence = "proven" if queue_entry.dsn_verified else "unproven"
    return f"{queue_entry.dsn_reporter or 'a server'} ({evidence})"


def _delivery_detail(queue_entry: ColumnRow) -> str:
    """Return the detail text of a queue entry."""
    facts = {
        "via": queue_entry.via,
        "attempts": queue_entry.attempts,
        "by": queue_entry.mx,
        "answer": last_reply(queue_entry),
        "reported by": _dsn_reporter_and_proof(queue_entry),
        "next": queue_entry.next_at and queue_entry.next_at.isoformat(),
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)

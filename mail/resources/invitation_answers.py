"""Answers to mail for resources: invitations are booked and answered, other mail is refused."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail import mime
from mail.addresses.address_syntax import (
    ascii_domain,
    normalize_and_validate_address,
    normalized_address,
)
from mail.authentication.dmarc import organizational_domain
from mail.compose.message_draft import CONTROL_CHARACTERS, MAX_NAME_BYTES
from mail.envelope.resource_refusal import ONLY_INVITATIONS_TEXT, ResourceMailRefused
from mail.inbound.incoming_message import IncomingMessage
from mail.mime.authentication_results import passed_domains
from mail.mime.calendar_events import CALENDAR_TYPES, MAX_CALENDAR_BYTES
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.queue.receipts import record_receipt_if_new
from mail.recipients.recipient_routes import AcceptedResource
from mail.recipients.sender_accounts import find_user_id_that_sends_as
from mail.resources.bookings import (
    BUSY_TEXT,
    SERIES_BUSY_TEXT,
    BookingDecision,
    BookingEvent,
    BookingResult,
    book_or_decline,
    has_booking_of_active_resource,
    release_bookings,
)
from mail.resources.invitation_parser import (
    Invitation,
    address_key,
    parse_invitation,
    require_invited,
)
from mail.resources.occurrences import (
    Occurrence,
    OccurrencePlan,
    occurrence_times,
    plan_occurrences,
)
from mail.resources.replies import ReplyContent, ReplyingResource, build_reply
from mail.resources.unbookable_event import UnbookableEvent
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.header_prepend import read_beginning
from mail.storage.received_messages import (
    parse_storable_message,
    store_all_blobs_and_run_transaction,
)
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable
from models.errors import InvalidInput, NotFound, ServiceUnavailable
from models.events.journal import PLATFORM
from models.resources.tables import Resource
from models.runtime.environment import DatabaseTransaction, Environment

MAX_HEADER_BYTES = 256 << 10  # that are searched for Auto-Submitted
ANSWERED_AUTOMATIC_MAIL = ("no", "auto-generated")  # calendar servers write the second one
NOT_AUTHENTICATED_TEXT = (
    "An invitation must be authenticated as from its organizer, by DMARC, SPF or DKIM."
)
COUNTER_TEXT = "The resource does not negotiate times. Please ask the organizer."
ACCEPTED_TEXT = "The resource is booked."
NOT_BOOKED_TEXT = "The resource is not booked for this event."

# One series is expanded at a time: it can take two seconds of CPU time.
_EXPANSION_THREAD = ThreadPoolExecutor(1, thread_name_prefix="series")
_EXPANSIONS: set[Future[OccurrencePlan]] = set()  # that run or wait in the thread
MAX_EXPANSIONS = 20

Decide = Callable[[DatabaseTransaction], BookingDecision]


@dataclass(frozen=True, slots=True)
class _Answer:
    """The change that an invitation asks for, and the replies by its possible results."""

    decide: Decide
    replies: dict[BookingResult, ReplyContent]


async def answer_invitation_and_return_trace_text(
    environment: Environment, incoming: IncomingMessage, accepted: AcceptedResource
) -> str:
    """Book or release a resource as an invitation asks, and queue the reply.

    A repeated delivery of a message changes nothing and has no second reply.
    Returns the result for the delivery trace. Change and reply are one transaction. Raises
    ResourceMailRefused for other mail and for unauthenticated invitations, NotFound if the resource
    is deleted or not active, ServiceUnavailable if too many invitations wait.
    """
    await _refuse_automatic_replies(incoming)
    invitation = await _read_invitation(incoming)
    author = _require_single_author_address(incoming)
    if invitation.method in ("REQUEST", "CANCEL") and author != invitation.organizer_key:
        raise ResourceMailRefused("The author of an invitation must be its organizer.")
    if not _is_author_authenticated(incoming, author):
        raise ResourceMailRefused(NOT_AUTHENTICATED_TEXT)
    resource = await _require_replying_resource(environment, accepted)
    if invitation.method == "REQUEST":
        addresses = (accepted.given_address, accepted.stored_address)
        require_invited(invitation, set(map(normalized_address, addresses)))
    event = await _build_booking_event(environment, invitation, accepted)
    answer = await _prepare_answer(environment, invitation, event)
    replies = {
        result: await _parsed_reply(environment, invitation, incoming.message, resource, content)
        for result, content in answer.replies.items()
    }
    decision = await _decide_and_enqueue_reply_once(
        environment, incoming, accepted, answer.decide, replies
    )
    return ": ".join(filter(None, (decision.result.value, decision.reason)))


async def _refuse_automatic_replies(incoming: IncomingMessage) -> None:
    """Raise ResourceMailRefused for mail of the null sender and for automatic replies."""
    structure = incoming.message.facts.structure
    most = min(incoming.message.facts.header_size, MAX_HEADER_BYTES)
    header = await read_beginning(incoming.raw_message, most)
    keywords = [
        mime.leading_keyword(field.value)
        for field in mime.decoded_fields(header, structure)
        if field.name.lower() == "auto-submitted"
    ]
    if not incoming.envelope_sender or any(
        keyword not in ANSWERED_AUTOMATIC_MAIL for keyword in keywords
    ):
        raise ResourceMailRefused("The address does not accept automatic replies.")


async def _read_invitation(incoming: IncomingMessage) -> Invitation:
    """Parse the invitation of a message: its first calendar part, those with a method first."""
    parts = [
        part
        for part in mime.calendar_parts(incoming.message.facts.structure)
        if part.content_type in CALENDAR_TYPES
    ]
    parts.sort(key=lambda part: "method" not in part.params)
    if not parts:
        raise ResourceMailRefused(ONLY_INVITATIONS_TEXT)
    part = parts[0]
    if part.size > 2 * MAX_CALENDAR_BYTES:  # base64 takes less than twice as much
        raise ResourceMailRefused(
            f"The calendar of an invitation has at most {MAX_CALENDAR_BYTES >> 10} KiB."
        )

    def parse() -> Invitation:
        raw = incoming.raw_message
        source = mime.FileSource(raw, incoming.message.size) if isinstance(raw, Path) else raw
        content = mime.decoded_content(source, part)
        return parse_invitation(content, part.params.get("charset"), part.params.get("method"))

    return await asyncio.to_thread(parse)


def _require_single_author_address(incoming: IncomingMessage) -> str:
    """Return the address in From, in the form of `address_key`.

    Raises ResourceMailRefused if there is not exactly one, or it is not valid.
    """
    authors = incoming.message.facts.from_
    try:
        (author,) = authors
        return address_key(normalize_and_validate_address(author.address))
    except (ValueError, InvalidInput):
        raise ResourceMailRefused("An invitation must have one author.") from None


def _is_author_authenticated(incoming: IncomingMessage, author: str) -> bool:
    """Return True if the author submitted the message here, or its domain authenticated it.

    That is by DMARC; without a DMARC policy of the domain, by SPF or DKIM in alignment with it.
    """
    if incoming.message.is_generated:  # the submission has checked the author
        return True
    results = incoming.message.authentication or {}
    if results.get("dmarc") == "pass":
        return True
    if results.get("dmarc") == "fail":
        return False
    domains = passed_domains(results.get("results") or "", "dkim")
    domains += [results["spf"]] if results.get("spf") else []
    author_domain = _organizational_domain_or_none(author.rpartition("@")[2])
    return author_domain is not None and author_domain in map(
        _organizational_domain_or_none, domains
    )


def _organizational_domain_or_none(domain: str) -> str | None:
    """Return the organizational domain as A-labels, None if the domain has no such form."""
    try:
        return organizational_domain(ascii_domain(domain))
    except ValueError:  # idna.IDNAError
        return None


async def _require_replying_resource(
    environment: Environment, accepted: AcceptedResource
) -> ReplyingResource:
    statement = select(col(Resource.name), col(Resource.kind)).where(
        col(Resource.id) == accepted.resource_id, col(Resource.active)
    )
    for row in await environment.database.read(statement):
        return ReplyingResource(accepted.stored_address, row.name, row.kind)
    raise NotFound(accepted.given_address, path=["address"])


async def _build_booking_event(
    environment: Environment, invitation: Invitation, accepted: AcceptedResource
) -> BookingEvent:
    """Return the event of an invitation for the bookings, with the local user who organizes it."""
    main = invitation.main_component
    name = CONTROL_CHARACTERS.sub("", invitation.organizer.name or "").strip()
    return BookingEvent(
        accepted.resource_id,
        make_storable(invitation.uid),
        make_storable(invitation.organizer_key),
        main.sequence,
        invitation.stamped_at(main, environment.now()),
        invitation.is_for_series,
        make_storable(name)[:MAX_NAME_BYTES] or None,
        await find_user_id_that_sends_as(environment, invitation.organizer.address),
        make_storable(invitation.summary or "") or None,
    )


async def _prepare_answer(
    environment: Environment, invitation: Invitation, event: BookingEvent
) -> _Answer:
    """Return what an invitation changes, and the replies for its possible results."""
    if invitation.method == "COUNTER":
        declined = ReplyContent("DECLINECOUNTER", "DECLINED", "Declined", COUNTER_TEXT)
        decision = BookingDecision(BookingResult.DECLINED)
        return _Answer(lambda _: decision, {BookingResult.DECLINED: declined})
    if invitation.method == "REFRESH":
        return _Answer(
            lambda transaction: BookingDecision(
                BookingResult.ACCEPTED
                if has_booking_of_active_resource(transaction, event)
                else BookingResult.DECLINED
            ),
            _reply_contents(ACCEPTED_TEXT, NOT_BOOKED_TEXT),
        )
    if invitation.method == "CANCEL":
        return _Answer(_release_decision_of_cancel(invitation, event), {})
    try:
        plan = await _plan_occurrences_in_thread(invitation, environment.now())
    except UnbookableEvent as refusal:
        reason = refusal.reason
        times = _named_occurrences_or_empty(invitation)
        return _Answer(
            lambda transaction: book_or_decline(transaction, event, times, reason),
            _reply_contents(ACCEPTED_TEXT, reason),
        )
    busy_text = BUSY_TEXT if len(plan.occurrences) == 1 else SERIES_BUSY_TEXT
    return _Answer(
        lambda transaction: book_or_decline(transaction, event, plan.occurrences, None),
        _reply_contents(_accepted_text(plan), busy_text),
    )


async def _plan_occurrences_in_thread(invitation: Invitation, now: datetime) -> OccurrencePlan:
    """Run `plan_occurrences`. Raises ServiceUnavailable if too many invitations wait for it."""
    if len(_EXPANSIONS) >= MAX_EXPANSIONS:
        raise ServiceUnavailable("Too many invitations are being processed.")
    future = _EXPANSION_THREAD.submit(plan_occurrences, invitation, now)
    _EXPANSIONS.add(future)
    future.add_done_callback(_EXPANSIONS.discard)
    return await asyncio.wrap_future(future)


def _named_occurrences_or_empty(invitation: Invitation) -> list[Occurrence]:
    """Return the occurrences that an unbookable invitation names; none if they are unreadable."""
    try:
        times = occurrence_times(invitation)
    except UnbookableEvent:
        return []
    return [Occurrence(at, at, at, invitation.main_component.sequence) for at in times]


def _accepted_text(plan: OccurrencePlan) -> str:
    if plan.booked_until is None:
        return ACCEPTED_TEXT
    return (
        f"The series has no end. The resource is booked until {plan.booked_until:%Y-%m-%d}. "
        "Please send another invitation for the time after it."
    )


def _reply_contents(accepted_text: str, declined_text: str) -> dict[BookingResult, ReplyContent]:
    return {
        BookingResult.ACCEPTED: ReplyContent("REPLY", "ACCEPTED", "Accepted", accepted_text),
        BookingResult.DECLINED: ReplyContent("REPLY", "DECLINED", "Declined", declined_text),
    }


def _release_decision_of_cancel(invitation: Invitation, event: BookingEvent) -> Decide:
    """Return the change of a CANCEL. Raises ResourceMailRefused if its times are unreadable."""
    try:
        times = occurrence_times(invitation) if not invitation.is_for_series else []
    except UnbookableEvent as problem:
        raise ResourceMailRefused(problem.reason) from problem
    is_range = any(component.is_for_later_ones for component in invitation.components)
    released_from = min(times) if is_range and times else None
    return lambda transaction: release_bookings(transaction, event, set(times), released_from)


async def _parsed_reply(
    environment: Environment,
    invitation: Invitation,
    message: StorableMessage,
    resource: ReplyingResource,
    content: ReplyContent,
) -> StorableMessage:
    """Build and parse a reply."""
    raw = await asyncio.to_thread(build_reply, environment, invitation, message, resource, content)
    return await parse_storable_message(raw)


async def _decide_and_enqueue_reply_once(
    environment: Environment,
    incoming: IncomingMessage,
    accepted: AcceptedResource,
    decide: Decide,
    replies: dict[BookingResult, StorableMessage],
) -> BookingDecision:
    """Make the change and queue the reply for its result, in one transaction.

    Once within the receipt period. The replies are stored before, since their text can't wait for
    the locks.
    """
    recipient, domain_id = incoming.message.facts.from_[0].address, accepted.domain_id
    receipt_text = (
        f"{incoming.envelope_sender}\0resource\0{accepted.resource_id}\0{incoming.content_digest}"
    )

    def decide_and_enqueue(
        transaction: DatabaseTransaction, stored_blobs: Sequence[StoredMessageBlobs]
    ) -> BookingDecision:
        """Make the change and queue its reply; `stored_blobs` are those of `replies`, in order.

        Returns REPEATED without a change if the receipt was recorded before.
        """
        if not record_receipt_if_new(transaction, receipt_text):
            return BookingDecision(BookingResult.REPEATED)
        decision = decide(transaction)
        for (result, reply), blobs in zip(replies.items(), stored_blobs, strict=True):
            if result is decision.result:
                # null sender: no DSN is sent for a reply
                submission = build_submission_and_insert_blobs(
                    transaction, reply, blobs, "", [recipient], originates_here=True
                )
                enqueue(transaction, SubmissionOwner(None, domain_id), submission)
        return decision

    return await store_all_blobs_and_run_transaction(
        environment, domain_id, list(replies.values()), decide_and_enqueue, PLATFORM, domain_id
    )

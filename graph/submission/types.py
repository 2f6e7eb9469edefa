"""GraphQL types, queries and subscription of submissions."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.messages.authentication import TlsInfo
from graph.messages.types import Message
from graph.submission.references import (
    SubmissionRef,
    resolve_submission_id_or_raise,
)
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query, subscription
from graph.types.input_conditions import ConditionsInput, require_valid_conditions
from graph.types.object_access import OWN
from graph.types.object_references import id_from_ref
from graph.types.object_views import DerivedField
from graph.types.references import value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    link,
    selected_columns,
)
from models.queue.tables import DeliveryState, last_reply
from models.store.keyset_pages import ordering_name
from models.submission.tables import SubmissionState
from models.users.roles import Scope
from resolvers.admin import progress
from resolvers.messages import loaders as message_loaders
from resolvers.messages.content_access import load_access_refusals
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueName
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.loaders import SubmissionOrder, SubmissionPageKey


@strawberry.type(description="Delivery of a submission to one recipient.")
class RecipientDelivery:
    recipient: str = attribute_field("Address that the message is sent to.")
    state: DeliveryState = attribute_field("State of the delivery to this recipient.")
    attempts: int = attribute_field(
        "Number of delivery attempts so far, including one in progress."
    )
    next_attempt_at: datetime | None = attribute_field(
        "Time of the next delivery attempt. Null while an attempt runs, while the entry is held, "
        "and after the last attempt."
    )
    last_response: str | None = attribute_field(
        "Result of the last attempt, with its SMTP code: the reply of the receiving "
        "server, or a text of this server if none answered. A later delivery report (RFC "
        "3464) replaces it. Null: there was no attempt."
    )
    delivered_at: datetime | None = attribute_field(
        "Time when the receiving server, relay host or webhook accepted the message. Null: not "
        "accepted."
    )
    mx: str | None = attribute_field(
        "Name of the server that the last attempt connected to. Null: there was none."
    )
    tls: TlsInfo | None = attribute_field(
        "TLS version and cipher suite of the last attempt. Null: it was not encrypted, or there "
        "was none."
    )
    reported_at: datetime | None = attribute_field(
        "Time when a delivery report came back (RFC 3464). Null: none did."
    )
    dsn_reporter: str | None = attribute_field(
        "Name that the server gives itself in the delivery report (RFC 3464). Null: there is no "
        "report."
    )
    dsn_verified: bool | None = attribute_field(
        "True if the delivery report is provably from the server that accepted the message. "
        "False: it may be forged. Null: there is no report."
    )
    queue_name: QueueName | None = attribute_field(
        "Queue that contains the delivery: INCOMING also while it waits for its send time or undo "
        "window. Null: it is finished."
    )

    @classmethod
    def from_row(cls, row: Any) -> "RecipientDelivery":
        """Return the delivery of a row."""
        return cls(
            recipient=row.recipient,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_at if row.lease is None and row.held_at is None else None,
            last_response=last_reply(row),
            delivered_at=row.delivered_at,
            mx=row.mx,
            tls=TlsInfo.parse_or_none(row.tls),
            reported_at=row.reported_at,
            dsn_reporter=row.dsn_reporter,
            dsn_verified=row.dsn_verified,
            queue_name=queue_loaders.queue_of_delivery_or_none(row),
        )


@strawberry.type(
    description="Submission of a message (RFC 8621): its way from the account to all recipients."
)
class Submission(NodeView):
    queue_id: str = attribute_field(
        "Queue ID of the message, as in logs and in `QueueEntry.queueId`."
    )
    state: SubmissionState = attribute_field(
        "State of the submission, derived from the deliveries to its recipients."
    )
    envelope_from: str = attribute_field(
        "Envelope sender: the address of MAIL FROM. Empty for the null sender."
    )
    send_at: datetime | None = attribute_field(
        "Time in the future that the sender requested for sending. Null: the message is sent at "
        "once, or after its undo window."
    )
    created_at: datetime = attribute_field("Time when the message was submitted.")
    undoable_until: datetime | None = attribute_field(
        "End of the undo window. Null: there is none."
    )
    message: Message | None = link(
        "message_id",
        message_loaders.load_visible_by_ids,
        Message.from_row_or_none,
        description=(
            "Stored copy of the message, or for `messageRedirect` the message that was sent again. "
            "Null if there is none, if it was deleted, or if the caller can't see it."
        ),
    )
    recipients: list[RecipientDelivery] = link(
        "id",
        submission_loaders.load_visible_queue_entries_by_submission,
        lambda rows: [RecipientDelivery.from_row(row) for row in rows],
        description=(
            "Deliveries of the submission, one for each recipient, in the order of the recipients. "
            "By default at most 400."
        ),
    )

    load_batch = staticmethod(submission_loaders.load_visible_submissions_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Submission")}


@strawberry.input(description="Conditions on submissions.")
class SubmissionFilter(ConditionsInput):
    states: list[SubmissionState] | None = attribute_field(
        "Returns only submissions in one of these states. An empty list returns none. Default: "
        "all states.",
        default=UNSET,
    )


async def authorize_and_load_submission_page(
    info: Info,
    user_id: int,
    filter: SubmissionFilter | None,
    order_by: SubmissionOrder,
    page_arguments: PageArguments,
) -> Connection[Submission]:
    """Load a page of an account's submissions. Raises Forbidden if the viewer can't see them."""
    if refusal := await info.context.load(load_access_refusals, user_id):
        raise refusal
    require_valid_conditions(filter, ("filter",))
    states = value_or_none(filter.states) if filter else None
    list_order = submission_loaders.LIST_ORDERS[order_by]
    list_ordering = ordering_name(
        f"submissions-{order_by}", None if states is None else ("states", *sorted(states))
    )
    requested_page = page_request(list_ordering, *page_arguments)
    page_key = SubmissionPageKey(
        user_id,
        requested_page,
        list_order,
        selected_columns(info, Submission),
        None if states is None else frozenset(states),
    )
    return await connection_of_page(
        info,
        Submission,
        await info.context.load(submission_loaders.load_visible_submission_pages, page_key),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: info.context.load(submission_loaders.count_visible_submissions, page_key),
    )


@strawberry.type
class SubmissionQuery:
    @query(
        "Returns one submission of the signed-in user. Null if it does not exist or belongs to "
        "another user.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def submission(self, info: Info, by: SubmissionRef) -> Submission | None:
        if by.id:
            key = id_from_ref(by, "by")
            row = await info.context.load(submission_loaders.load_own_submissions_by_id, key)
        else:
            name = by.queue_id.value if by.queue_id else ""
            row = await info.context.load(submission_loaders.load_own_submissions_by_queue_id, name)
        return Submission.from_row_or_none(row)


@strawberry.type
class SubmissionSubscription:
    @subscription(
        "Returns a submission at once and after each change of it or of its deliveries, until its "
        "state is SENT, PARTIAL, FAILED or CANCELLED. A submission that does not exist or belongs "
        "to another user is the error NOT_FOUND. Without `submission`, returns each submission of "
        "the signed-in user after each change, and does not end.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def submission_progress(
        self, info: Info, submission: SubmissionRef | None = UNSET
    ) -> AsyncIterator[Submission]:
        ctx = info.context
        key = (
            await resolve_submission_id_or_raise(info, submission, "submission")
            if submission
            else None
        )
        rows = (
            progress.follow_submissions(ctx)
            if key is None
            else progress.follow_submission_until_finished(ctx, key)
        )
        async for row in rows:
            yield Submission.from_row(row)

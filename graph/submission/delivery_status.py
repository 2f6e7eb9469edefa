"""GraphQL types of the delivery status of a sent message."""

from datetime import datetime
from typing import Any

import strawberry

from graph.types.errors import attribute_field
from models.queue.tables import DeliveryState, last_reply
from resolvers.submission.message_redirect import ForwardDestination


@strawberry.type(description="One queued recipient.")
class OutboundEntry:
    seq: str = attribute_field("Number, from 001, in hexadecimal.")
    recipient: str = attribute_field("To whom.")
    sending_zone: str | None = attribute_field("Server it was handed to, or the relay it goes by.")
    queued_until: datetime | None = attribute_field(
        "Next try; null while one is under way, and at the end."
    )
    state: DeliveryState = attribute_field("How far it has come.")
    last_response: str | None = attribute_field("What the other side said last.")


@strawberry.type(description="Queued deliveries of a message.")
class Outbound:
    queue_id: str = attribute_field("Id in the queue.")
    entries: list[OutboundEntry] = attribute_field("One for each recipient.")


def outbound_from_rows(submissions_with_deliveries: list[tuple[Any, list[Any]]]) -> list[Outbound]:
    """Return the GraphQL objects of submissions with their deliveries, in the same order."""
    return [
        Outbound(queue_id=submission.queue_id, entries=_outbound_entries(rows))
        for submission, rows in submissions_with_deliveries
    ]


@strawberry.type(description="Where a message was forwarded.")
class ForwardTarget:
    seq: str = attribute_field(
        "Number of the target, from 1; of an original one its number among those."
    )
    type: str = attribute_field("mail: an address; relay: smtp:// or smtps://; http: a page.")
    value: str = attribute_field("The address; of a relay without its password.")

    @classmethod
    def from_target(cls, target: ForwardDestination) -> "ForwardTarget":
        """Return the GraphQL object of a target."""
        return cls(seq=str(target.number), type=target.type_name, value=target.display_target)


def _outbound_entries(deliveries: list[Any]) -> list[OutboundEntry]:
    """Return the GraphQL objects of deliveries, numbered from 001."""
    return [
        OutboundEntry(
            seq=f"{index:03x}",
            recipient=row.recipient,
            sending_zone=row.mx or row.via,
            queued_until=row.next_at if row.lease is None else None,
            state=row.state,
            last_response=last_reply(row),
        )
        for index, row in enumerate(deliveries, 1)
    ]

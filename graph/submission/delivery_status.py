"""GraphQL types of the delivery status of a sent message."""

from datetime import datetime
from typing import Any

import strawberry

from graph.types.errors import leaf
from models.queue.tables import DeliveryState, answer
from resolvers.submission.message_forward import Target


@strawberry.type(description="One queued recipient.")
class OutboundEntry:
    seq: str = leaf("Number, from 001, in hexadecimal.")
    recipient: str = leaf("To whom.")
    sending_zone: str | None = leaf("Server it was handed to, or the relay it goes by.")
    queued_until: datetime | None = leaf("Next try; null while one is under way, and at the end.")
    state: DeliveryState = leaf("How far it has come.")
    last_response: str | None = leaf("What the other side said last.")


@strawberry.type(description="Queued deliveries of a message.")
class Outbound:
    queue_id: str = leaf("Id in the queue.")
    entries: list[OutboundEntry] = leaf("One for each recipient.")


def outbound_of(found: list[tuple[Any, list[Any]]]) -> list[Outbound]:
    """Return the GraphQL objects of submissions with their deliveries, in the same order."""
    return [
        Outbound(queue_id=submission.queue_id, entries=_entries(rows)) for submission, rows in found
    ]


@strawberry.type(description="Where a message was forwarded.")
class ForwardTarget:
    seq: str = leaf("Number of the target, from 1; of an original one its number among those.")
    type: str = leaf("mail: an address; relay: smtp:// or smtps://; http: a page.")
    value: str = leaf("The address; of a relay without its password.")

    @classmethod
    def of(cls, target: Target) -> "ForwardTarget":
        """Return the GraphQL object of a target."""
        return cls(seq=str(target.seq), type=target.type, value=target.shown)


def _entries(rows: list[Any]) -> list[OutboundEntry]:
    """Return the GraphQL objects of deliveries, numbered from 001."""
    return [
        OutboundEntry(
            seq=f"{index:03x}",
            recipient=row.recipient,
            sending_zone=row.mx or row.via,
            queued_until=row.next_at if row.lease is None else None,
            state=row.state,
            last_response=answer(row),
        )
        for index, row in enumerate(rows, 1)
    ]

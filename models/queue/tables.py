"""The outbound queue: one row per recipient."""

from enum import StrEnum
from typing import Any

from sqlmodel import Field, SQLModel

from models.store.columns import (
    MaybeMoment,
    MaybeNumber,
    MaybeOwned,
    Moment,
    Number,
    choice,
    partial_index,
    ref,
)


class DeliveryState(StrEnum):
    """How far a delivery to one recipient has come."""

    PENDING = "PENDING"
    DEFERRED = "DEFERRED"
    DELIVERED = "DELIVERED"
    RELAYED = "RELAYED"
    BOUNCED = "BOUNCED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


# What becomes due by its time: neither in the line of its destination, nor held, nor leased.
DUE = "next_at IS NOT NULL AND turn_at IS NULL AND held_at IS NULL AND lease IS NULL"
# What is not at its end. Letter by letter as the index has it: a parameter would not find that.
OPEN = "state IN ('PENDING', 'DEFERRED')"
DEFERRED = "state = 'DEFERRED'"  # what is tried again, likewise
RANKS = 3  # those in a hurry; usual ones; those that can wait, and whoever was tried before
MIDDLE = 1


class Delivery(MaybeOwned, table=True):
    """One recipient of a submission. The process that sends it has a lease."""

    __tablename__ = "deliveries"
    __table_args__ = (
        partial_index("deliveries_due", DUE, "next_at", "id"),
        partial_index("deliveries_turn", "turn_at IS NOT NULL", "rank", "domain", "turn_at", "id"),
        partial_index("deliveries_open", OPEN, "submission_id"),
        partial_index("deliveries_deferred", DEFERRED, "submission_id"),
        partial_index("deliveries_held", "held_at IS NOT NULL", "submission_id"),
        partial_index("deliveries_leased", "lease IS NOT NULL", "lease", "submission_id"),
        partial_index("deliveries_owed", "success_owed IS NOT NULL", "submission_id", "id"),
    )

    submission_id: int = ref("submissions.id")
    recipient: str
    domain: str  # or `via`: what is sent there is sent in one go
    via: str | None = None  # the relay or page it goes to, without a password
    secret: str | None = None  # the same with its password, sealed for the delivery
    state: DeliveryState = choice(DeliveryState, default=DeliveryState.PENDING)
    attempts: Number = 0
    next_at: MaybeMoment = None  # None: nothing more is tried
    turn_at: MaybeMoment = None  # its place in the line of its destination; None: it is not in it
    rank: Number = MIDDLE  # which of the lines; see RANKS
    held_at: MaybeMoment = None  # since when an administrator has stopped it
    hurried_at: MaybeMoment = None  # it is to be tried as soon as may be, somebody said then
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py
    lease: MaybeNumber = None  # who holds it
    final_dot_at: MaybeMoment = None  # the whole message may be with the other side since
    last_code: MaybeNumber = None  # SMTP
    last_response: str | None = None
    mx: str | None = None
    tls: str | None = None  # version and cipher
    delivered_at: MaybeMoment = None
    notify: str | None = None  # of what is to be told (RFC 3461); None: it was not said
    orcpt: str | None = None  # the first recipient: type;address
    delay_told_at: MaybeMoment = None
    success_owed: str | None = None  # what became of it; its sender is still to be told of that
    reported_at: MaybeMoment = None  # by another server, which had taken it
    reported_by: str | None = None  # as it names itself
    report_proven: bool | None = None  # it showed what only we and that server know
    created_at: Moment
    expires_at: Moment


class PlaceTurn(SQLModel, table=True):
    """How far the turns of a place are given away, where so many messages may go in a minute."""

    __tablename__ = "place_turns"

    place: str = Field(primary_key=True)
    free_at: Moment  # from then on the next one may go
    until: Moment = Field(index=True)  # up to then those have turns that were put off, too


def answer(of: Any) -> str | None:
    """What the other side said last, code and words, on one line; None where it never did.

    Of the row `last_code` and `last_response` are read.
    """
    said = " ".join(str(part) for part in (of.last_code, of.last_response) if part)
    return said or None

"""How a message enters the queue, inside the unit of whoever hands it in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col

from mail.queue.jobs import EXPIRES
from models.blobs import SubmissionBlob
from models.journal import PLATFORM, ChangeKind, Entry
from models.queue import QUEUE, Delivery, DeliveryState
from models.submission import Submission, SubmissionState
from models.users import User
from models.world import Turn


@dataclass(frozen=True, slots=True)
class Handed:
    """What the queue is given: the envelope, and the blobs of a message."""

    sender: str  # empty: nothing is reported back
    recipients: Sequence[str]
    size: int
    root: int  # blob
    blobs: Sequence[int]  # the root among them
    message_id: int | None  # the stored copy
    at: datetime  # of the first attempt
    state: SubmissionState = SubmissionState.QUEUED
    send_time: datetime | None = None
    undo_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """For whom something is sent: an account, or the platform, which names the tenant."""

    user_id: int | None
    tenant_id: int | None = None  # of an account it is known
    origin: str | None = None


def hand_in(turn: Turn, of: Sender, handed: Handed) -> int:
    """Write submission, deliveries, what blobs it needs, and the journal; the submission's key.

    The bell of the queue rings with the commit.
    """
    now, key = turn.world.now(), turn.world.key()
    tenant: Any = of.tenant_id
    if of.user_id is not None:
        tenant = select(col(User.tenant_id)).where(col(User.id) == of.user_id).scalar_subquery()
    row = {
        "id": key,
        "user_id": of.user_id,
        "tenant_id": tenant,
        "queue_id": turn.world.random(10).hex(),
        "state": handed.state,
        "message_id": handed.message_id,
        "blob_id": handed.root,
        "size": handed.size,
        "envelope_from": handed.sender,
        "send_time": handed.send_time,
        "undo_until": handed.undo_until,
        "created_at": now,
    }
    turn.connection.execute(insert(Submission).values(row))
    deliveries = [
        {
            "id": turn.world.key(),
            "user_id": of.user_id,
            "submission_id": key,
            "recipient": address,
            "domain": address.rpartition("@")[2],
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "next_at": handed.at,
            "created_at": now,
            "expires_at": handed.at + EXPIRES,
        }
        for address in handed.recipients
    ]
    turn.connection.execute(insert(Delivery), deliveries)
    needs = [{"submission_id": key, "blob_id": blob} for blob in set(handed.blobs)]
    turn.connection.execute(insert(SubmissionBlob), needs)
    entry = Entry(ChangeKind.SUBMISSION_CHANGED, [key], {"state": handed.state.value}, of.origin)
    turn.record(PLATFORM if of.user_id is None else of.user_id, entry, at=now)
    turn.bells.add(QUEUE)
    return key

"""Handing messages to the queue: their rows, in the unit that sends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert

from mail import audit
from mail.delivery import Letter, columns
from mail.queue.settle import EXPIRES
from models.blobs import SubmissionBlob
from models.journal import ChangeKind, Entry
from models.queue import Delivery, DeliveryState
from models.submission import Submission, SubmissionState
from models.world import Turn


@dataclass(frozen=True, slots=True)
class Handed:
    """What the queue is given: the envelope, and the blobs of a message."""

    sender: str
    recipients: Sequence[str]
    size: int
    root: int  # blob
    blobs: Sequence[int]  # the root among them
    message_id: int | None  # the stored copy
    at: datetime  # of the first attempt
    state: SubmissionState = SubmissionState.QUEUED
    send_time: datetime | None = None
    undo_until: datetime | None = None


def hand_in(turn: Turn, owner: int, handed: Handed, *, origin: str | None = None) -> int:
    """Write submission, deliveries, what blobs it needs, and the journal; the submission's key."""
    now, key = turn.world.now(), turn.world.key()
    row = {
        "id": key,
        "user_id": owner,
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
    turn.connection.execute(insert(Submission), row)
    deliveries = [
        {
            "id": turn.world.key(),
            "user_id": owner,
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
    facts = {"state": handed.state.value}
    entry = Entry(ChangeKind.SUBMISSION_CHANGED, [key], facts, origin)
    turn.record(owner, entry, at=now)
    return key


def unkept(turn: Turn, keys: tuple[int, int], letter: Letter, handed: Handed) -> None:
    """Let audits of the sender have what leaves no copy in a folder.

    `keys` are those of the account and of the submission.
    """
    owner, submission_id = keys
    facts = {
        **columns(letter),
        "blob_id": handed.root,
        "received_at": turn.world.now(),
        "envelope_from": handed.sender,
        "envelope_to": list(handed.recipients),
    }
    audit.sent(turn, owner, submission_id, facts, handed.blobs)

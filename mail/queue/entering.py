"""How a message gets into the queue: a submission, a row for each recipient, and its blobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert

from mail.queue.settle import EXPIRES
from models.blobs import SubmissionBlob
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
    copy_of: int | None = None  # as `Submission.copy_of`


def enter(turn: Turn, user_id: int, handed: Handed) -> int:
    """Write submission, deliveries, and what blobs it needs; the submission's key.

    The journal and the bell are the caller's.
    """
    now, key = turn.world.now(), turn.world.key()
    row = {
        "id": key,
        "user_id": user_id,
        "queue_id": turn.world.random(10).hex(),
        "state": handed.state,
        "message_id": handed.message_id,
        "blob_id": handed.root,
        "size": handed.size,
        "envelope_from": handed.sender,
        "send_time": handed.send_time,
        "undo_until": handed.undo_until,
        "copy_of": handed.copy_of,
        "created_at": now,
    }
    turn.connection.execute(insert(Submission), row)
    deliveries = [
        {
            "id": turn.world.key(),
            "user_id": user_id,
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
    return key

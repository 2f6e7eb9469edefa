"""Put messages into the queue, inside the caller's transaction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col

from mail.compose.message_builder import Priority
from mail.envelope.dsn_parameters import NEVER, USUAL, Wish, some
from mail.queue.destination_order import LAST
from mail.recipients.forward_targets import Via
from mail.storage import audit_copies, message_trace
from mail.storage.blobs.blob_writer import Kept, blob_ids
from mail.storage.message_insert import Letter, Placed, columns
from models.events.journal import PLATFORM, ChangeKind, Entry
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.queue.tables import MIDDLE, Delivery, DeliveryState
from models.runtime.environment import Turn
from models.store.prepared_statements import Prepared, Sent, number
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User

SOON = timedelta(minutes=1)  # workers poll more often than this, so later messages need no wake-up
_SUBMISSION = Prepared(insert(Submission).inline())
_DELIVERY = Prepared(insert(Delivery).inline())
_NEED = Prepared(insert(SubmissionBlob).inline())
_TENANT = Prepared(select(col(User.tenant_id)).where(col(User.id) == number("user")))
HELD = (SubmissionState.SCHEDULED, SubmissionState.HELD_FOR_UNDO)
RANK = {Priority.HIGH: 0, Priority.NORMAL: MIDDLE, Priority.LOW: LAST}


@dataclass(frozen=True, slots=True)
class Handed:
    """A message to put into the queue: envelope, blobs and options."""

    sender: str  # envelope sender; empty: no DSN is sent
    recipients: Sequence[str]
    size: int
    root: int
    blobs: Sequence[int]  # includes the root blob
    message_id: int | None  # id of the copy in a mailbox
    at: datetime  # time of the first attempt
    state: SubmissionState = SubmissionState.QUEUED
    send_time: datetime | None = None
    undo_until: datetime | None = None
    sent_mailbox_id: int | None = None  # where a held copy moves when the hold ends
    via: Sequence[Via] = ()  # targets besides `recipients`
    copy_of: int | None = None  # submission that a BCC rule copied
    priority: Priority = Priority.NORMAL
    header_id: str | None = None  # value of Message-ID, for the delivery trace
    wishes: Mapping[str, Wish] = field(default_factory=dict)  # by recipient
    ours: bool = False  # it gets DKIM signatures of the author's domain


def handed(  # noqa: PLR0913 - the envelope, and what is sent
    turn: Turn,
    letter: Letter,
    kept: Kept,
    sender: str,
    recipients: Sequence[str],
    *,
    placed: Placed | None = None,
    **more: Any,
) -> Handed:
    """A submission for a message with stored bytes. It is due now unless `due_at` is given.

    `stored_copy` is the copy that the same transaction stored in a mailbox. Other options are
    fields of the submission.
    """
    if placed is None:
        blobs = blob_ids(turn, kept)
        root, needed = blobs[kept.root], list(blobs.values())
    else:
        root, needed = placed.root_blob_id, list(placed.blob_ids)
    more = {"message_id": None, "at": turn.world.now(), "ours": letter.ours, **more}
    more["header_id"] = letter.facts.message_id
    return Handed(sender, recipients, letter.size, root, needed, **more)


@dataclass(frozen=True, slots=True)
class Sender:
    """The user that a message is sent for, or the platform with a tenant."""

    user_id: int | None
    tenant_id: int | None = None  # None: the tenant of the user
    origin: str | None = None


def hand_in(turn: Turn, of: Sender, handed: Handed) -> int:
    """Insert a submission with its queue entries, blob references and journal entry.

    Returns the submission id. Workers are woken at commit if it is due soon.
    """
    (key,) = hand_in_all(turn, of, [handed])
    return key


def hand_in_all(turn: Turn, of: Sender, handed: Sequence[Handed]) -> list[int]:
    """Insert several submissions as `enqueue` does, in one batch. Returns their ids in order."""
    tenant = _tenant(turn, of.user_id) if of.tenant_id is None else of.tenant_id
    now, works, keys = turn.world.now(), list[Sent](), list[int]()
    states: dict[SubmissionState, list[int]] = {}
    for one in handed:
        row = _row(turn, one, of.user_id, tenant)
        key = row["id"]
        keys.append(key)
        states.setdefault(one.state, []).append(key)
        works.append((_SUBMISSION, row))
        works += [(_DELIVERY, delivery) for delivery in _deliveries(turn, one, key, of.user_id)]
        needs = set(one.blobs)
        works += [(_NEED, {"submission_id": key, "blob_id": blob}) for blob in needs]
        to = (*one.recipients, *(via.recipient for via in one.via))
        works += message_trace.steps_of_submission(turn.world, row, to)
        if one.at - now < SOON:
            turn.bells.add(QUEUE)
    entries = [
        Entry(ChangeKind.SUBMISSION_CHANGED, state_ids, {"state": state.value}, of.origin)
        for state, state_ids in states.items()
    ]
    stream = PLATFORM if of.user_id is None else of.user_id
    _, told = turn.told(stream, entries, at=now)
    turn.send([*works, *told])
    return keys


def _row(turn: Turn, handed: Handed, user_id: int | None, tenant: int | None) -> dict[str, Any]:
    """Column values of the `submissions` row."""
    said = some(handed.wishes.values())
    return {
        "id": turn.world.key(),
        "user_id": user_id,
        "tenant_id": tenant,
        "queue_id": turn.world.random(10).hex(),
        "state": handed.state,
        "message_id": handed.message_id,
        "blob_id": handed.root,
        "size": handed.size,
        "envelope_from": handed.sender,
        "send_time": handed.send_time,
        "undo_until": handed.undo_until,
        "release_at": handed.at if handed.state in HELD else None,
        "sent_mailbox_id": handed.sent_mailbox_id,
        "copy_of": handed.copy_of,
        "envid": said.envid,
        "ret": said.ret,
        "header_id": message_trace.cut(handed.header_id),
        "ours": handed.ours,
        "created_at": turn.world.now(),
    }


def _tenant(turn: Turn, user_id: int | None) -> int | None:
    """The tenant id of a user. None for no user or an unknown one."""
    found = turn.fetched(_TENANT, user=user_id) if user_id is not None else ()
    return found[0].tenant_id if found else None


def _deliveries(
    turn: Turn, handed: Handed, submission_id: int, user_id: int | None
) -> list[dict[str, Any]]:
    """Column values of the queue entries, in the order of the recipients."""
    now = turn.world.now()
    same = {
        "user_id": user_id,
        "submission_id": submission_id,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "next_at": handed.at,
        "turn_at": handed.at if handed.at <= now else None,
        "rank": RANK[handed.priority],
        "created_at": now,
        "expires_at": handed.at + turn.world.options.queue_expires,
    }
    return [{**same, **row} for row in _each(turn, handed)]


def unkept(turn: Turn, keys: tuple[int, int], letter: Letter, handed: Handed) -> None:
    """Store an audit copy of a sent message that has no copy in a mailbox.

    `owner_and_submission_ids` are the user id and the submission id.
    """
    owner, submission_id = keys
    facts = {
        **columns(letter),
        "blob_id": handed.root,
        "received_at": turn.world.now(),
        "envelope_from": handed.sender,
        "envelope_to": list(handed.recipients),
    }
    audit_copies.sent(turn, owner, submission_id, facts, handed.blobs)


def _each(turn: Turn, handed: Handed) -> Iterator[dict[str, Any]]:
    """Column values that differ between the queue entries of a submission."""
    for address in handed.recipients:
        domain = address.rpartition("@")[2]
        own = {"id": turn.world.key(), "recipient": address, "domain": domain}
        yield {**own, "via": None, "secret": None, **_told(handed, address)}
    for via in handed.via:
        key = turn.world.key()
        secret = turn.world.vault.seal(via.whole, sealed_for(key))
        own = {"id": key, "recipient": via.recipient, "domain": via.shown}
        yield {**own, "via": via.shown, "secret": secret, **_told(handed, via.recipient)}


def _told(handed: Handed, address: str) -> dict[str, str | None]:
    """The `notify` and `orcpt` columns. Copies and messages without a sender get no reports."""
    if not handed.sender or handed.copy_of is not None:
        return {"notify": NEVER, "orcpt": None}
    wish = handed.wishes.get(address, USUAL)
    return {"notify": wish.notify, "orcpt": wish.orcpt}


def sealed_for(delivery_id: int) -> str:
    """The secret box context that the URL of a delivery's forward endpoint is encrypted for."""
    return f"via:{delivery_id}"

"""How a message enters the queue, inside the unit of whoever hands it in."""

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

SOON = timedelta(minutes=1)  # whoever sends looks more often by himself: `Pace.look`
_SUBMISSION = Prepared(insert(Submission).inline())
_DELIVERY = Prepared(insert(Delivery).inline())
_NEED = Prepared(insert(SubmissionBlob).inline())
_TENANT = Prepared(select(col(User.tenant_id)).where(col(User.id) == number("user")))
HELD = (SubmissionState.SCHEDULED, SubmissionState.HELD_FOR_UNDO)
RANK = {Priority.HIGH: 0, Priority.NORMAL: MIDDLE, Priority.LOW: LAST}


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
    sent_mailbox_id: int | None = None  # of a held copy: the mailbox for it when the hold ends
    via: Sequence[Via] = ()  # it goes there as well
    copy_of: int | None = None  # as `Submission.copy_of`: it is nobody's
    priority: Priority = Priority.NORMAL
    header_id: str | None = None  # its Message-ID, by which its way is found
    wishes: Mapping[str, Wish] = field(default_factory=dict)  # of recipients, what is to be told
    ours: bool = False  # written here: keys of its author's domain sign it


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
    """What the queue is given of a message whose bytes are safe; it is due now unless `at` says.

    Where it was `placed` in a folder before, in the same unit, its bytes are known already.
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
    """For whom something is sent: an account, or the platform, which names the tenant."""

    user_id: int | None
    tenant_id: int | None = None  # of an account it is known
    origin: str | None = None


def hand_in(turn: Turn, of: Sender, handed: Handed) -> int:
    """Write submission, deliveries, what blobs it needs, and the journal; the submission's key.

    The bell of the queue rings with the commit, unless it is to wait.
    """
    (key,) = hand_in_all(turn, of, [handed])
    return key


def hand_in_all(turn: Turn, of: Sender, handed: Sequence[Handed]) -> list[int]:
    """The same with several, by as few statements as with one; their keys."""
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
        Entry(ChangeKind.SUBMISSION_CHANGED, those, {"state": state.value}, of.origin)
        for state, those in states.items()
    ]
    stream = PLATFORM if of.user_id is None else of.user_id
    _, told = turn.told(stream, entries, at=now)
    turn.send([*works, *told])
    return keys


def _row(turn: Turn, handed: Handed, user_id: int | None, tenant: int | None) -> dict[str, Any]:
    """That of the submission."""
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
    """That of an account."""
    found = turn.fetched(_TENANT, user=user_id) if user_id is not None else ()
    return found[0].tenant_id if found else None


def _deliveries(
    turn: Turn, handed: Handed, submission_id: int, user_id: int | None
) -> list[dict[str, Any]]:
    """The rows of its recipients, in their order."""
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
    audit_copies.sent(turn, owner, submission_id, facts, handed.blobs)


def _each(turn: Turn, handed: Handed) -> Iterator[dict[str, Any]]:
    """What is each recipient's own."""
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
    """What is to be told of a recipient; of a copy, and to nobody, nothing."""
    if not handed.sender or handed.copy_of is not None:
        return {"notify": NEVER, "orcpt": None}
    wish = handed.wishes.get(address, USUAL)
    return {"notify": wish.notify, "orcpt": wish.orcpt}


def sealed_for(delivery_id: int) -> str:
    """What the password of a delivery's relay is sealed for."""
    return f"via:{delivery_id}"

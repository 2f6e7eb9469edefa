"""Send automatic replies. The reply and its record are one transaction, so it is sent once."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    String,
    Update,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail import mime
from mail.addresses.address_syntax import checked, normal, normal_domain
from mail.autoreply.decision import Came, Reply, Rule, Silence, answer, plain, quiet, sender_key
from mail.compose import message_builder
from mail.compose.message_builder import NAME, Draft, HeaderLine
from mail.envelope.local_recipient import Recipient
from mail.mime import Header
from mail.mime.header_encoding import Named
from mail.queue.enqueue import Sender, hand_in, handed, unkept
from mail.recipients import address_resolution
from mail.recipients.batch_resolution import resolve_all
from mail.recipients.recipient_routes import Answering
from mail.storage.blobs.blob_writer import Kept
from mail.storage.message_insert import Letter
from mail.storage.received_messages import read, with_bytes
from models.addresses.tables import Address
from models.autoreply import Autoreply, AutoreplySender
from models.domains.tables import Domain, DomainAlias
from models.errors import Invalid, NotFound
from models.events.journal import PLATFORM
from models.observability import metrics
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked, insert_or, picked
from models.store.prepared_statements import Prepared, number, prepared
from models.users.tables import Usage, UsageKind, User

log = logging.getLogger(__name__)

MOST = 2000  # replies per account or address
DAY = timedelta(days=1)
LOOKED = 50  # addresses in To and Cc that are resolved
HEADER = 256 << 10  # bytes of the header that are read
TRIES = 3  # if the rule is changed meanwhile

ANSWERS = metrics.counter(
    "merganser_autoreplies",
    "Messages to accounts and addresses that answer by themselves: answered, failed, or why not.",
    "outcome",
)


_NOW = bindparam("now", type_=Instant)


def internal(home: Any) -> ColumnElement[bool]:
    """SQL: true if `domain` is the name or an alias of the domain with this ID."""
    named = bindparam("domain", type_=String)
    own = exists().where(col(Domain.id) == home, col(Domain.name) == named)
    alias = exists().where(
        col(DomainAlias.domain_id) == home,
        col(DomainAlias.alias) == named,
        col(DomainAlias.active),
    )
    return or_(own, alias)


def answered(owner: Any) -> ColumnElement[bool]:
    """SQL: true if `sender` gets no further reply of this account or address at `now`."""
    return exists().where(
        col(AutoreplySender.autoreply_id) == owner,
        col(AutoreplySender.sender) == bindparam("sender", type_=String),
        col(AutoreplySender.until) > _NOW,
    )


def spent() -> ColumnElement[bool]:
    """SQL: true if the account has reached its daily limit of replies at `now`."""
    return exists().where(
        col(Usage.user_id) == col(User.id),
        col(Usage.kind) == UsageKind.AUTOREPLIES,
        col(Usage.used) >= MOST,
        col(Usage.until) > _NOW,
    )


def spent_by_address() -> ColumnElement[bool]:
    """SQL: true if the address has reached its daily limit of replies at `now`."""
    running = and_(col(Address.replied_until).is_not(None), col(Address.replied_until) > _NOW)
    return and_(running, col(Address.replied) >= MOST)


_main = aliased(Address)
# One statement selects the facts about the account, the recipient address
# and the sender.
_RULE = Prepared(
    select(
        *picked(Autoreply),
        func.coalesce(col(Autoreply.name), col(User.name)).label("shown_name"),
        col(User.suspended),
        col(_main.shown).label("main"),
        col(Address.send_as),
        internal(col(User.domain_id)).label("internal"),
        answered(col(User.id)).label("answered"),
        spent().label("spent"),
    )
    .join(User, col(User.id) == col(Autoreply.user_id))
    .outerjoin(Address, col(Address.id) == number("address"))
    .outerjoin(_main, and_(col(_main.user_id) == col(User.id), col(_main.main)))
    .where(col(Autoreply.id) == number("user"))
)
# The same for a forwarding address. It replies as itself, even if nobody may send as it.
_OF_ADDRESS = Prepared(
    select(
        *picked(Autoreply),
        func.coalesce(col(Autoreply.name), col(Address.name)).label("shown_name"),
        false().label("suspended"),
        null().label("main"),
        true().label("send_as"),
        internal(col(Address.domain_id)).label("internal"),
        answered(col(Address.id)).label("answered"),
        spent_by_address().label("spent"),
    )
    .join(Address, col(Address.id) == col(Autoreply.address_id))
    .where(col(Autoreply.id) == number("address"), col(Address.active))
)


@prepared
def _remembered(dialect: str) -> Any:
    """Upsert the sender that got a reply."""
    new = insert_or(dialect, AutoreplySender)
    return new.on_conflict_do_update(
        index_elements=["autoreply_id", "sender"], set_={"until": new.excluded.until}
    ).inline()


@prepared
def counted(dialect: str) -> Any:
    """Upsert that increments the reply count of `user_id` in the day that ends at `until`."""
    new, running = insert_or(dialect, Usage), col(Usage.until) > _NOW
    again = {
        "used": case((running, Usage.used + 1), else_=1),
        "until": case((running, col(Usage.until)), else_=new.excluded.until),
    }
    return new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=again).inline()


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A message that may get a reply, with the parameters that select the rule."""

    letter: Letter
    to: Recipient | Answering
    sender: str
    given: dict[str, Any]

    @property
    def rule(self) -> Prepared:
        """The statement that selects the rule of the account or address."""
        return _OF_ADDRESS if self.to.user_id is None else _RULE


async def after(
    world: World,
    mail: tuple[bytes | Path, Letter],
    to: Recipient | Answering,
    sender: str,
    *,
    spam: bool = False,
) -> str | None:
    """Send an automatic reply to a delivered message if the account or address has one.

    Returns `answered`, `failed` or the reason for no reply; None if automatic replies are off. Runs
    after the delivery and before its acknowledgement: after a crash the repeated delivery sends the
    reply. Errors are logged and don't affect the delivery.
    """
    if isinstance(to, Recipient) and not to.answers:
        return None
    whose = {"user": to.user_id, "address": to.address_id}
    try:
        header = await header_of(*mail)
        forged = (mail[1].verification or {}).get("dmarc") == "fail"
        came = Came.of(mail[1].facts, sender, to.address, header)
        came = replace(came, spam=spam or forged)
        silence = await _answered(world, mail[1], to, came)
    except Exception as error:  # the message is stored; the client must not send it again
        if isinstance(error, StatementError):
            error.hide_parameters = True  # they contain mail
        log.exception("not answered", extra=whose)
        ANSWERS.add("failed")
        return "failed"
    outcome = silence.outcome if silence else "answered"
    ANSWERS.add(outcome)
    log.debug("autoreply", extra={**whose, "silence": silence})
    return outcome


async def _answered(
    world: World, letter: Letter, to: Recipient | Answering, came: Came
) -> Silence | None:
    """Send the reply. Returns None, or the reason for no reply."""
    if silence := quiet(came):
        return silence
    sender = checked(came.sender)
    given = {
        "user": to.user_id,
        "address": to.address_id,
        "sender": sender_key(sender),
        "domain": normal_domain(sender.rpartition("@")[2]),
    }
    incoming = _Incoming(letter, to, sender, given)
    for _ in range(TRIES):
        row = next(
            iter(await world.database.find(incoming.rule, given | {"now": world.now()})), None
        )
        if row is None:
            return Silence.OFF
        decided = await _decided(world, incoming, row, came)
        if isinstance(decided, Silence):
            return decided
        with suppress(_Changed):
            return await _sent(world, incoming, row, decided)
    raise RuntimeError("the rule has changed each time it was to be followed")


class _Changed(Exception):
    """The rule was changed after the reply was built."""


async def _decided(world: World, incoming: _Incoming, row: Picked, came: Came) -> Reply | Silence:
    """Return the reply of a rule, or the reason for none, with earlier replies considered."""
    if row.suspended:
        return Silence.SUSPENDED
    if row.answered or row.spent:
        return Silence.ANSWERED if row.answered else Silence.LIMIT
    to, facts = incoming.to, incoming.letter.facts
    if writer(row.send_as, to.address, row.main) is None:
        return Silence.OTHER_ADDRESS
    by = await taker(world, incoming.sender)
    named = [each.address for each in (*facts.to, *facts.cc)]
    came = replace(
        came,
        address_id=to.address_id,
        internal=row.internal,
        own=by is not None and is_of(by, to.user_id, to.address_id),
        addressed=await stands(world, (to.user_id, to.address_id), to.address, named),
    )
    return answer(Rule.of(row), came, world.now())


def is_of(row: Picked, user_id: int | None, address_id: int) -> bool:
    """Return True if an address belongs to the account or, without an account, is the address."""
    mine: bool = row.id == address_id if user_id is None else row.user_id == user_id
    return mine


async def stands(
    world: World, whose: tuple[int | None, int], to: str, named: Sequence[str]
) -> bool:
    """Return True if the account is in the To or Cc addresses. Blind copies don't count.

    The pair is the account ID and the address ID; without an account only the address counts. No
    SQL statement if the envelope recipient is in the header.
    """
    distinct = {normal(address): address for address in named}
    if normal(to) in distinct:
        return True
    found = await resolve_all(world, list(distinct.values())[:LOOKED])
    return any(row.active and is_of(row, *whose) for row in found.values())


async def taker(world: World, address: str) -> Picked | None:
    """Return the row of the address that receives mail for it; None if it is not local."""
    try:
        return await address_resolution.resolve(world, address)
    except NotFound:
        return None


def writer(send_as: bool | None, address: str, main: str | None) -> str | None:
    """Return the From address of a reply: the recipient address, or the main address.

    The main address is used if the account must not send as the recipient address.
    """
    if send_as:
        with suppress(Invalid):  # the recipient address is not valid as From
            return checked(address)
    return main


async def header_of(source: bytes | Path, letter: Letter) -> list[Header]:
    """Return the header fields of a message, from at most MAX_HEADER bytes."""
    most = min(letter.facts.header_size, HEADER)
    head = (
        source[:most]
        if isinstance(source, bytes)
        else await asyncio.to_thread(_beginning, source, most)
    )
    return mime.headers(head, letter.facts.structure)


def _beginning(source: Path, most: int) -> bytes:
    """Read the first bytes of a file."""
    with source.open("rb") as file:
        return file.read(most)


async def _sent(world: World, incoming: _Incoming, row: Picked, reply: Reply) -> Silence | None:
    """Enqueue the reply and record its sender. Returns None, or the reason for no reply."""
    draft = _draft(world, incoming, row, reply)
    letter = await read(await asyncio.to_thread(message_builder.build, draft))
    owner, tenant = incoming.to.user_id, incoming.to.tenant_id

    def unit(turn: Turn, kept: Kept) -> Silence | None:
        """Recheck the rule under the lock: no other process can reply or change it."""
        given = incoming.given | {"now": world.now()}
        found = next(iter(turn.fetched(incoming.rule, **given)), None)
        if found is not None and (found.answered or found.spent):
            return Silence.ANSWERED if found.answered else Silence.LIMIT
        if found != row:
            raise _Changed
        _note(turn, row, given)
        # null sender: no DSN is sent for a reply
        answer = handed(turn, letter, kept, "", [incoming.sender], ours=True)
        if owner is None:
            hand_in(turn, Sender(None, tenant), answer)
        else:
            unkept(turn, (owner, hand_in(turn, Sender(owner), answer)), letter, answer)
        return None

    held = [PLATFORM, tenant or PLATFORM] if owner is None else [owner]
    return await with_bytes(world, tenant, letter, unit, *held)


def _draft(world: World, incoming: _Incoming, row: Picked, reply: Reply) -> Draft:
    """Return the draft of a reply."""
    sender, facts = incoming.sender, incoming.letter.facts
    address = writer(row.send_as, incoming.to.address, row.main) or ""
    names = (each.name for each in facts.from_ if normal(each.address) == normal(sender))
    name = next(filter(None, names), "")
    return Draft(
        from_=Named(address, plain(row.shown_name or "", NAME) or None),
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), address.rpartition("@")[2]),
        to=[Named(sender, plain(name, NAME) or None)],
        subject=reply.subject,
        text=reply.text or None,
        html=reply.html or None,
        headers=[
            HeaderLine("Auto-Submitted", "auto-replied"),  # RFC 3834, section 5
            HeaderLine("X-Auto-Response-Suppress", "All"),
        ],
        in_reply_to=reply.in_reply_to,
        references=reply.references,
    )


def _note(turn: Turn, row: Picked, given: dict[str, Any]) -> None:
    """Record the sender that got the reply, and count it."""
    dialect, now = turn.connection.dialect.name, given["now"]
    usual = turn.world.options.autoreply_interval
    interval = usual if row.interval is None else timedelta(seconds=row.interval)
    sender = {"autoreply_id": row.id, "sender": given["sender"], "until": now + interval}
    if row.address_id is not None:
        turn.send([(_remembered(dialect), sender)])
        turn.connection.execute(_one_more(row.address_id, now))
        return
    usage = {"user_id": given["user"], "kind": UsageKind.AUTOREPLIES, "used": 1}
    used = {**usage, "until": now + DAY, "now": now}
    turn.send([(_remembered(dialect), sender), (counted(dialect), used)])


def _one_more(address_id: int, now: datetime) -> Update:
    """Return the statement that increments the replies of an address."""
    running = col(Address.replied_until) > now
    until = case((running, col(Address.replied_until)), else_=now + DAY)
    many = case((running, Address.replied + 1), else_=1)
    this = update(Address).where(col(Address.id) == address_id)
    return this.values(replied=many, replied_until=until)

"""Certificates that ACME makes: who takes the next step of one holds its lease."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import delete, insert, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.dns_resolver import records
from mail.tls import acme_client, pem_certificates
from mail.tls.acme_client import Advice, Challenge, Client, Failure
from mail.tls.pem_certificates import Fitting, Sent
from models.certificates import AcmeChallenge, Certificate
from models.errors import Invalid, Unavailable
from models.events import journal
from models.events.journal import PLATFORM, ChangeKind, Entry
from models.events.wakeups import CERTIFICATES, rest
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import World, ring
from models.store.columns import Picked, picked
from resolvers.certificates import acme_accounts
from resolvers.certificates.certificates import named_in, opened, resting, stored

log = logging.getLogger(__name__)

IDLE = 60.0  # seconds until the worker looks unasked
WHOLE = timedelta(minutes=8)  # for one certificate
PAUSE_AFTER_ERROR = 600.0  # seconds until a step is taken again whose result was not written
PROVING = timedelta(minutes=3)  # for the authority to find what it looks for, or to sign
AGAIN = timedelta(minutes=10)  # after a failure; each time twice as long
SELDOM = timedelta(days=1)
LIMITED = timedelta(hours=1)  # at least, where we asked too often
SPREAD = 0.1  # that much earlier or later, so that not all come at once
JITTER = timedelta(days=1)  # that much earlier one is renewed, at most, or
PART = 30  # where it lives short, this part of its life
OFTEN = timedelta(minutes=1)  # at least between two looks when to renew, and SELDOM at most
LATER = timedelta(seconds=acme_client.HOLDS)  # where the authority did not say
KEPT = timedelta(hours=1)  # what answers a challenge
LOOKED = 5.0  # seconds for a question to DNS
ABREAST = 10  # names that DNS is asked about at a time

ENDED = metrics.counter("merganser_acme_orders", "Orders of certificates that ended.", "outcome")

Value = TypeVar("Value")


class Lost(Exception):
    """It was changed or deleted, or another process takes the step."""


async def run(world: World) -> None:
    """Take what steps are due, one certificate after another, until cancelled."""
    async with leases.registered(world):
        await _step_on(world)


async def _step_on(world: World) -> None:
    with world.wakeups.listen([CERTIFICATES, PLATFORM]) as bell:  # settings are told of there
        while True:
            bell.clear()
            try:
                while await step(world):
                    pass
            except Exception:  # a worker's edge: it looks again
                log.exception("certificates could not be looked at")
            await rest([bell], IDLE)


async def step(world: World) -> bool:
    """Take the next step that is due; whether there was one."""
    row = await _claimed(world)
    if row is None:
        return False
    try:
        with leases.in_use(world, row.lease):
            await _take(world, row)
    except Exception:
        leases.abandon(world, Certificate, *_mine(row), after=PAUSE_AFTER_ERROR)
        raise
    return True


async def _take(world: World, row: Picked) -> None:
    """Take this step, and note what came of it."""
    waits = row.acme_renew_at is not None and row.acme_renew_at > world.now()
    taken, failed = (_looked, _unadvised) if waits else (_made, _failed)
    try:
        await taken(world, row)
    except Lost:
        log.info("certificate changed meanwhile", extra={"serverName": row.server_name})
        if not waits:
            ENDED.add("lost")
    except Failure as problem:
        await failed(world, row, problem)
    except (Invalid, Unavailable) as problem:
        await failed(world, row, Failure(f"what came cannot be used: {problem.message}"))
    except TimeoutError:
        await failed(world, row, Failure("the authority takes too long"))
    except asyncio.CancelledError:
        await _given_back(world, row)
        raise
    except Exception:
        log.exception("certificate broke", extra={"serverName": row.server_name})
        await failed(world, row, Failure("it broke on our side"))


async def _made(world: World, row: Picked) -> None:
    """Have it made."""
    log.info("certificate ordered", extra={"serverName": row.server_name})
    async with asyncio.timeout(WHOLE.total_seconds()):
        issued = await _ordered(world, row)
    await _keep(world, row, issued)
    ENDED.add("issued")
    log.info("certificate issued", extra={"serverName": row.server_name})


async def _looked(world: World, row: Picked) -> None:
    """Ask the authority when it is to be renewed."""
    async with asyncio.timeout(WHOLE.total_seconds()):
        advice = await _advice(world, row)
    alone = {"acme_next_at": row.acme_renew_at}
    await _rest(world, row, _heeded(row, advice, world.now()) if advice else alone)


async def _claimed(world: World) -> Picked | None:
    """The next that is due and nobody holds, with a lease of ours."""
    if not world.options.acme_terms_agreed:
        return None
    now, lease = world.now(), world.key()
    free = leases.is_free(Certificate)
    due = (col(Certificate.acme), col(Certificate.acme_next_at) <= now, free)
    first = select(col(Certificate.id)).where(*due).order_by(col(Certificate.acme_next_at)).limit(1)
    found = next(iter(await world.database.read(first)), None)
    if found is None:
        return None  # an idle worker writes nothing
    process_id = await leases.ensure_registered(world)
    async with world.write() as session:
        claim = update(Certificate).where(col(Certificate.id) == found.id, *due)
        claim = claim.where(leases.is_registered(process_id))
        claimed = claim.values(leases.held(process_id, lease)).returning(*picked(Certificate))
        return (await (await session.connection()).execute(claimed)).first()


@dataclass(frozen=True, slots=True)
class Issued:
    """What has come, from where, and whether its authority says when it is to be renewed."""

    made: Fitting
    directory: str
    advised: bool


async def _ordered(world: World, row: Picked) -> Issued:
    """A certificate for its names, with the key that it had: TLSA records go on being right."""
    options, names = world.options, [row.server_name, *row.acme_names]
    await _each(names, lambda name: _address(world, name))
    await _note(world, row, "asks the authority")
    key = opened(world, row) if row.private_key else await asyncio.to_thread(acme_client.new_key)
    account = await acme_accounts.account(world, options.acme_directory)
    server = acme_accounts.server(world, options.acme_directory)
    async with acme_client.connect(server, account.key) as client:
        await _each(names, lambda name: _allowed(world, name, client.identities))
        url = await asyncio.to_thread(client.enter, account.url, options.acme_contact)
        if url != account.url:
            await acme_accounts.made(world, account.id, url)
        csr = await asyncio.to_thread(acme_client.request, key, names)
        mine = row.acme_directory == options.acme_directory and client.advises
        replaced = acme_client.certificate_id(row.chain) if mine else None
        try:
            urls = await asyncio.to_thread(client.order, csr, names, replaced)
        except Failure as problem:
            if problem.code == acme_client.UNKNOWN:
                await acme_accounts.made(world, account.id, None)  # another one next time
            raise
        await _prove(world, row, client, urls)
        await _note(world, row, "proved, waits for the certificate")
        await asyncio.to_thread(client.finish)
        chain = await _until(world, client.issued, "the authority did not sign in time")
    made = await asyncio.to_thread(pem_certificates.fitting, Sent(str(chain), key))
    if missing := [name for name in names if not pem_certificates.covers(made.names, name)]:
        raise Failure(f"{missing[0]} does not stand in the certificate that came")
    return Issued(made, options.acme_directory, client.advises)


async def _each(names: Sequence[str], check: Callable[[str], Awaitable[None]]) -> None:
    """Failure, with the words of the first, where any of these names does not pass."""
    places, failed = asyncio.Semaphore(ABREAST), {}

    async def one(name: str) -> None:
        async with places:
            try:
                await check(name)
            except Failure as problem:
                failed[name] = str(problem)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    bad = [name for name in names if name in failed]
    if bad:
        raise acme_client.failure_of(bad, failed[bad[0]])


async def _prove(world: World, row: Picked, client: Client, urls: Sequence[str]) -> None:
    """Show the authority what it looks for, of all names at once."""
    wanted = [await asyncio.to_thread(client.challenge, url) for url in urls]
    challenges = [challenge for challenge in wanted if challenge]
    try:
        await _publish(world, row, challenges)
        for challenge in challenges:
            await asyncio.to_thread(client.answer, challenge)
        await _until(world, client.proved, "the authority did not look for its challenge in time")
    finally:
        await _withdraw(world, challenges)


async def _until(world: World, asked: Callable[[], Value], late: str) -> Value:
    """What it comes to say, when it says anything; Failure where it takes too long."""
    ends = asyncio.get_running_loop().time() + PROVING.total_seconds()
    while asyncio.get_running_loop().time() < ends:
        if found := await asyncio.to_thread(asked):
            return found
        world.fault("acme")
    raise Failure(late)


async def _address(world: World, name: str) -> None:
    """Failure where DNS says that nobody could find us by this name."""
    for kind in ("A", "AAAA"):
        if await records(world.options.dns_resolver, name, kind, LOOKED) != []:
            return
    raise Failure("DNS has no address for it: publish A or AAAA")


async def _allowed(world: World, name: str, identities: tuple[str, ...]) -> None:
    """Failure where CAA records let only others issue (RFC 8659)."""
    at = name
    while identities and "." in at:
        found = await records(world.options.dns_resolver, at, "CAA", LOOKED)
        if found is None:
            return  # it is the authority's to judge
        if found:
            issuers = [
                record.value.decode(errors="replace").partition(";")[0].strip().lower()
                for record in found
                if record.tag.lower() == b"issue"
            ]
            if issuers and not set(issuers) & set(identities):
                raise Failure(f"CAA of {at} does not let {identities[0]} issue")
            return
        at = at.partition(".")[2]


def _mine(row: Picked) -> tuple[Any, Any]:
    return col(Certificate.id) == row.id, col(Certificate.lease) == row.lease


async def _note(world: World, row: Picked, state: str) -> None:
    """Tell how far it has come; Lost where it is no longer ours."""
    await _change(world, row, {"acme_state": state})


async def _change(world: World, row: Picked, values: dict[str, Any]) -> None:
    async with world.write(PLATFORM) as session:
        await _write(world, session, row, values)


async def _write(world: World, session: AsyncSession, row: Picked, values: dict[str, Any]) -> None:
    now = world.now()
    this = update(Certificate).where(*_mine(row)).values(**values, updated_at=now)
    if not (await (await session.connection()).execute(this)).rowcount:
        raise Lost
    entry = Entry(ChangeKind.CERTIFICATE_CHANGED, [row.id])
    await journal.record(session, PLATFORM, entry, at=now)


async def _publish(world: World, row: Picked, challenges: list[Challenge]) -> None:
    """Let every process answer for these tokens."""
    now = world.now()
    answers = {one.token: one.answer for one in challenges}
    kept = {"certificate_id": row.id, "expires_at": now + KEPT}
    rows = [{"token": token, "answer": answer, **kept} for token, answer in answers.items()]
    async with world.write(PLATFORM) as session:
        connection = await session.connection()
        old = or_(col(AcmeChallenge.expires_at) < now, col(AcmeChallenge.token).in_(answers))
        await connection.execute(delete(AcmeChallenge).where(old))
        many = 1 + len(row.acme_names)
        state = f"proves that {many} names are ours" if many > 1 else "proves that the name is ours"
        await _write(world, session, row, {"acme_state": state})
        if rows:
            await connection.execute(insert(AcmeChallenge), rows)


async def _withdraw(world: World, challenges: list[Challenge]) -> None:
    these = col(AcmeChallenge.token).in_([one.token for one in challenges])
    async with world.write() as session:
        await (await session.connection()).execute(delete(AcmeChallenge).where(these))


async def answer(world: World, token: str) -> str | None:
    """What an authority is to find under this token; None where there is nothing."""
    now = world.now()
    asked = select(col(AcmeChallenge.answer)).where(
        col(AcmeChallenge.token) == token, col(AcmeChallenge.expires_at) > now
    )
    return next((str(row.answer) for row in await world.database.read(asked)), None)


async def _keep(world: World, row: Picked, issued: Issued) -> None:
    """Store what has come; the listeners have it at once."""
    made = issued.made
    rests = resting(made.not_before, made.not_after)
    early = random.uniform(0, 1) * _margin(made.not_before, made.not_after)  # noqa: S311
    due = rests["acme_next_at"] - early
    values = {
        **stored(world, row.id, made, row.version),
        **rests,
        "acme_directory": issued.directory,
        "acme_renew_at": due,
        "acme_next_at": world.now() if issued.advised else due,
        "acme_failures": 0,
        "lease": None,
        "holder": None,
    }
    async with world.write(PLATFORM) as session:
        await _write(world, session, row, values)
        await named_in(session, row.id, made.names)
        ring(session, CERTIFICATES)


def _margin(begins: datetime, ends: datetime) -> timedelta:
    """What is little in the life of a certificate."""
    return min(JITTER, (ends - begins) / PART)


async def _advice(world: World, row: Picked) -> Advice | None:
    """What its authority says of its renewal; None where it says nothing, or is ours no more."""
    directory = world.options.acme_directory
    if row.acme_directory != directory:
        return None
    account = await acme_accounts.account(world, directory)
    server = acme_accounts.server(world, directory)
    async with acme_client.connect(server, account.key) as client:
        return await asyncio.to_thread(client.advice, row.chain) if client.advises else None


def _heeded(row: Picked, advice: Advice, now: datetime) -> dict[str, Any]:
    """When it is renewed: by chance in the window, but neither at once nor at its very end.

    The chance is that of its fingerprint: as long as the window stands, so does the moment.
    """
    chance = int(row.sha256[:8], 16) / (1 << 32)
    margin = _margin(row.not_before, row.not_after)
    at = advice.start + (advice.end - advice.start) * chance
    at = min(max(at, row.not_before + margin), row.not_after - margin)
    again = now + min(max(advice.holds, OFTEN), SELDOM)
    return {
        "acme_state": f"valid, renewed on {at:%Y-%m-%d} as its authority asks",
        "acme_renew_at": at,
        "acme_next_at": min(at, again),
    }


async def _unadvised(world: World, row: Picked, problem: Failure) -> None:
    """Go by our own rule, but not later than the authority has asked before; look again later."""
    facts = {"serverName": row.server_name, "why": str(problem)}
    log.warning("the authority does not say when a certificate is to be renewed", extra=facts)
    rests = resting(row.not_before, row.not_after)
    values = rests if rests["acme_renew_at"] < row.acme_renew_at else {}
    at = min(rests["acme_renew_at"], row.acme_renew_at)
    with suppress(Lost):
        await _rest(world, row, {**values, "acme_next_at": min(at, world.now() + LATER)})


async def _rest(world: World, row: Picked, values: dict[str, Any]) -> None:
    """Let go of it; told of is only what shows."""
    values = {**values, "lease": None, "holder": None}
    if values.get("acme_state", row.acme_state) != row.acme_state:
        await _change(world, row, values)
        return
    async with world.write() as session:
        this = update(Certificate).where(*_mine(row)).values(**values)
        await (await session.connection()).execute(this)


async def _failed(world: World, row: Picked, problem: Failure) -> None:
    """Note why, and when it is tried again."""
    ENDED.add("failed")
    failures = row.acme_failures + 1
    pause = min(AGAIN * 2 ** min(failures - 1, 10), SELDOM)
    if problem.code == acme_client.LIMITED:
        pause = max(pause, LIMITED)
    again: datetime = world.now() + pause * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311
    facts = {"serverName": row.server_name, "why": str(problem), "failures": failures}
    log.warning("certificate not issued", extra=facts)
    values = {
        "acme_state": f"failed, tried again {again:%Y-%m-%d %H:%M} UTC: {problem}",
        "acme_failures": failures,
        "acme_next_at": again,
        "lease": None,
        "holder": None,
    }
    try:
        await _change(world, row, values)
    except Lost:
        log.info("certificate changed meanwhile", extra={"serverName": row.server_name})


async def _given_back(world: World, row: Picked) -> None:
    """Let the next process go on at once."""
    async with world.write() as session:
        free = update(Certificate).where(*_mine(row)).values(lease=None, holder=None)
        await (await session.connection()).execute(free)

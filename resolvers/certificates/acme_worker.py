"""The worker that orders and renews certificates by ACME. It leases the one it works on."""

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

IDLE = 60.0  # between checks without wake-up
WHOLE = timedelta(minutes=8)  # per certificate
PAUSE_AFTER_ERROR = 600.0  # until a step without stored result is repeated
PROVING = timedelta(minutes=3)  # for the authority to check the challenges, or to sign
AGAIN = timedelta(minutes=10)  # after a failure; doubled each time
SELDOM = timedelta(days=1)
LIMITED = timedelta(hours=1)  # at least, if the authority limits the rate
SPREAD = 0.1  # the share by which a retry is earlier or later, so that not all come at once
JITTER = timedelta(days=1)  # the longest random time by which a renewal is earlier
PART = 30  # for a short-lived certificate this part of its lifetime
OFTEN = timedelta(minutes=1)  # between two queries of renewal information; MAX_RETRY is the longest
LATER = timedelta(seconds=acme_client.HOLDS)  # if the authority gives none
KEPT = timedelta(hours=1)
LOOKED = 5.0  # seconds per query
ABREAST = 10  # names checked in DNS at the same time

ENDED = metrics.counter("merganser_acme_orders", "Orders of certificates that ended.", "outcome")

Value = TypeVar("Value")


class Lost(Exception):
    """The certificate was changed or deleted, or another process has leased it."""


async def run(world: World) -> None:
    """Process due certificates, one after another, until cancelled."""
    async with leases.registered(world):
        await _step_on(world)


async def _step_on(world: World) -> None:
    with world.wakeups.listen(
        [CERTIFICATES, PLATFORM]
    ) as bell:  # changes of settings are recorded there
        while True:
            bell.clear()
            try:
                while await step(world):
                    pass
            except Exception:  # keep running: the next attempt can succeed
                log.exception("certificates could not be looked at")
            await rest([bell], IDLE)


async def step(world: World) -> bool:
    """Lease and process the next due certificate. Returns False if there is none."""
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
    """Order the certificate or query when to renew it, and store the outcome."""
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
    """Order the certificate and store it."""
    log.info("certificate ordered", extra={"serverName": row.server_name})
    async with asyncio.timeout(WHOLE.total_seconds()):
        issued = await _ordered(world, row)
    await _keep(world, row, issued)
    ENDED.add("issued")
    log.info("certificate issued", extra={"serverName": row.server_name})


async def _looked(world: World, row: Picked) -> None:
    """Query the authority for the renewal time and store it."""
    async with asyncio.timeout(WHOLE.total_seconds()):
        advice = await _advice(world, row)
    alone = {"acme_next_at": row.acme_renew_at}
    await _rest(world, row, _heeded(row, advice, world.now()) if advice else alone)


async def _claimed(world: World) -> Picked | None:
    """Lease the next due certificate, or return None."""
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
    """An issued certificate with the URL of its ACME directory.

    `advised` is true if the authority publishes renewal information.
    """

    made: Fitting
    directory: str
    advised: bool


async def _ordered(world: World, row: Picked) -> Issued:
    """Order a certificate with the present key, so that TLSA records stay valid.

    Raises acme_client.Failure, InvalidInput, ServiceUnavailable or CertificateLeaseLost.
    """
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
                await acme_accounts.made(
                    world, account.id, None
                )  # the next attempt registers a new account
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
    """Run a check for each name.

    Raises acme_client.Failure with the message of the first failed one.
    """
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
    """Publish the challenges of all names and wait until the authority has checked them.

    Raises acme_client.Failure.
    """
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
    """Poll until the function returns a true value.

    Raises acme_client.Failure after AUTHORITY_TIMEOUT.
    """
    ends = asyncio.get_running_loop().time() + PROVING.total_seconds()
    while asyncio.get_running_loop().time() < ends:
        if found := await asyncio.to_thread(asked):
            return found
        world.fault("acme")
    raise Failure(late)


async def _address(world: World, name: str) -> None:
    """Raise acme_client.Failure if DNS has no address for this name."""
    for kind in ("A", "AAAA"):
        if await records(world.options.dns_resolver, name, kind, LOOKED) != []:
            return
    raise Failure("DNS has no address for it: publish A or AAAA")


async def _allowed(world: World, name: str, identities: tuple[str, ...]) -> None:
    """Raise acme_client.Failure if CAA records allow other authorities only (RFC 8659)."""
    at = name
    while identities and "." in at:
        found = await records(world.options.dns_resolver, at, "CAA", LOOKED)
        if found is None:
            return  # the authority decides
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
    """Store how far the order is. Raises CertificateLeaseLost if the lease is lost."""
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
    """Store the challenges, so that every process can answer them."""
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
    """Return the answer to an ACME challenge token, or None."""
    now = world.now()
    asked = select(col(AcmeChallenge.answer)).where(
        col(AcmeChallenge.token) == token, col(AcmeChallenge.expires_at) > now
    )
    return next((str(row.answer) for row in await world.database.read(asked)), None)


async def _keep(world: World, row: Picked, issued: Issued) -> None:
    """Store an issued certificate and wake the listeners, which serve it at once."""
    made = issued.made
    rests = resting(made.not_before, made.not_after)
    share = random.uniform(0, 1)  # noqa: S311
    early = share * _margin(made.not_before, made.not_after)
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
    """Return the longest random time by which a renewal is earlier."""
    return min(JITTER, (ends - begins) / PART)


async def _advice(world: World, row: Picked) -> Advice | None:
    """Return the renewal window that the authority publishes.

    None if it has none, or the certificate is from another authority.
    """
    directory = world.options.acme_directory
    if row.acme_directory != directory:
        return None
    account = await acme_accounts.account(world, directory)
    server = acme_accounts.server(world, directory)
    async with acme_client.connect(server, account.key) as client:
        return await asyncio.to_thread(client.advice, row.chain) if client.advises else None


def _heeded(row: Picked, advice: Advice, now: datetime) -> dict[str, Any]:
    """Return the columns for a renewal at a random time in the window, but not at its very end.

    The random number is derived from the fingerprint, so the time stays the same.
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
    """Use the default renewal time, unless the stored one is earlier, and query again later."""
    facts = {"serverName": row.server_name, "why": str(problem)}
    log.warning("the authority does not say when a certificate is to be renewed", extra=facts)
    rests = resting(row.not_before, row.not_after)
    values = rests if rests["acme_renew_at"] < row.acme_renew_at else {}
    at = min(rests["acme_renew_at"], row.acme_renew_at)
    with suppress(Lost):
        await _rest(world, row, {**values, "acme_next_at": min(at, world.now() + LATER)})


async def _rest(world: World, row: Picked, values: dict[str, Any]) -> None:
    """Release the lease with new values. Only a changed state is recorded in the journal."""
    values = {**values, "lease": None, "holder": None}
    if values.get("acme_state", row.acme_state) != row.acme_state:
        await _change(world, row, values)
        return
    async with world.write() as session:
        this = update(Certificate).where(*_mine(row)).values(**values)
        await (await session.connection()).execute(this)


async def _failed(world: World, row: Picked, problem: Failure) -> None:
    """Store why the order failed and when it is repeated."""
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
    """Release the lease, so that another process can continue at once."""
    async with world.write() as session:
        free = update(Certificate).where(*_mine(row)).values(lease=None, holder=None)
        await (await session.connection()).execute(free)

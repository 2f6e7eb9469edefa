"""The DNS records that domains should have, compared with the ones they have."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.resolver
from dns.asyncresolver import Resolver
from sqlalchemy import select
from sqlmodel import col

from mail.domains.dns_advice import Advice, DnsState, Judged, Ours, SigningKey, advise
from mail.network.dns_resolver import resolver
from models.domains.dkim_keys import ALL, DkimKey, DkimKeyState
from models.errors import Forbidden
from models.store.columns import Picked, picked
from resolvers.certificates.certificates import spki_served
from resolvers.context import Context

DEADLINE = 4.0  # seconds for all queries of one operation
TRY = 1.5  # seconds until a query is repeated
AT_ONCE = 32
UNASKED = Judged(DnsState.UNKNOWN, problem="not looked up")
UNSET = Judged(DnsState.UNKNOWN, problem="not configured")
LATE = Judged(DnsState.UNKNOWN, problem="no answer in time")
SILENT = Judged(DnsState.UNKNOWN, problem="no name server is known")


@dataclass(frozen=True, slots=True)
class Checked:
    """A DNS record that should exist, with the comparison to the one found."""

    advice: Advice
    judged: Judged


@dataclass(frozen=True, slots=True)
class Question:
    """A domain whose records are requested. `check` compares them with DNS."""

    domain: str
    backup: bool
    check: bool

    @classmethod
    def of(cls, row: Picked, *, check: bool) -> "Question":
        """Return the key for the domain of this row."""
        return cls(row.name, row.backup_mx, check)


async def records(ctx: Context, questions: list[Question]) -> list[list[Checked]]:
    """Return the expected records of domains, in the given order.

    Queries of all domains share one deadline. Raises Forbidden for queries inside a
    transaction, which would stay open as long.
    """
    if ctx.writing and any(question.check for question in questions):
        raise Forbidden("a look-up in DNS takes no part in a unit")
    options = ctx.world.options
    keys = await _signing(ctx, [each.domain for each in questions])
    spki = await spki_served(ctx.world, options.hostname.lower())
    advised = [
        advise(
            Ours(
                each.domain,
                options.hostname,
                each.backup,
                tuple(keys[each.domain]),
                options.mta_sts,
                spki,
            )
        )
        for each in questions
    ]
    asked = [
        advice
        for question, part in zip(questions, advised, strict=True)
        for advice in part
        if question.check and advice.judge
    ]
    judged = await look(ctx.world.options.dns_resolver, asked) if asked else {}
    return [
        [Checked(each, judged.get(id(each)) or (UNASKED if each.judge else UNSET)) for each in part]
        for part in advised
    ]


async def _signing(ctx: Context, names: Sequence[str]) -> dict[str, list[SigningKey]]:
    """Load the keys whose records domains should have: their own, else those for all domains.

    Keys for all domains sign until a key of the domain does.
    """
    used = col(DkimKey.state).in_([DkimKeyState.ACTIVE, DkimKeyState.PENDING])
    columns = ("domain", "selector", "algorithm", "public", "state")
    asked = select(*picked(DkimKey, columns)).where(col(DkimKey.domain).in_([*names, ALL]), used)
    found: dict[str, list[SigningKey]] = {}
    for row in await ctx.read(asked.order_by(col(DkimKey.id))):
        waits = row.state is DkimKeyState.PENDING
        key = SigningKey(row.selector, row.algorithm, row.public, waits=waits)
        found.setdefault(row.domain, []).append(key)
    return {name: _needed(found.get(name, []), found.get(ALL, [])) for name in names}


def _needed(own: list[SigningKey], others: Sequence[SigningKey]) -> list[SigningKey]:
    taken = {key.selector for key in own}  # a DNS name holds one key
    if all(key.waits for key in own):
        return [*own, *(key for key in others if key.selector not in taken)]
    return own


async def look(place: str | None, asked: Sequence[Advice]) -> dict[int, Judged]:
    """Query the records of advices and judge them, by the id of the advice.

    Takes at most OPERATION_TIMEOUT seconds.
    """
    try:
        asking = resolver(place)
    except dns.resolver.NoResolverConfiguration:
        return {id(advice): SILENT for advice in asked}
    asking.timeout, asking.lifetime = TRY, DEADLINE
    crowd = asyncio.Semaphore(AT_ONCE)
    answers: dict[tuple[str, str], asyncio.Task[Sequence[str] | Judged]] = {}

    async def answered(name: str, kind: str) -> Sequence[str] | Judged:
        async with crowd:
            return await _asked(asking, name, kind)

    for advice in asked:
        key = (advice.name, advice.type)
        if key not in answers:
            answers[key] = asyncio.create_task(answered(*key))
    try:
        await asyncio.wait(answers.values(), timeout=DEADLINE)
    finally:
        for task in answers.values():
            task.cancel()
        await asyncio.gather(*answers.values(), return_exceptions=True)
    return {id(each): _judged(each, answers[each.name, each.type]) for each in asked}


def _judged(advice: Advice, answer: "asyncio.Task[Sequence[str] | Judged]") -> Judged:
    if answer.cancelled():
        return LATE
    found = answer.result()
    if isinstance(found, Judged):
        return found
    return advice.judge(found) if advice.judge else UNSET


async def _asked(asking: Resolver, name: str, kind: str) -> Sequence[str] | Judged:
    """Return the records as text, an empty list if there are none, or a judgement on failure."""
    try:
        answer = await asking.resolve(f"{name}.", kind, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return []
    except dns.exception.Timeout:
        return LATE
    except (dns.exception.DNSException, OSError, ValueError) as problem:
        text = f"the name server fails: {type(problem).__name__}"
        return Judged(DnsState.UNKNOWN, problem=text)
    return [_text(record, kind) for record in answer.rrset or ()]


def _text(record: Any, kind: str) -> str:
    """Return a record as text. A TXT record is the concatenation of its strings."""
    if kind == "TXT":
        return b"".join(record.strings).decode(errors="replace")
    return str(record.to_text())

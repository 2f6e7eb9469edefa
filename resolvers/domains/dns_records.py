"""What DNS should say of domains, and what it says: looked up live, within a few seconds."""

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

DEADLINE = 4.0  # seconds for all that one operation looks up
TRY = 1.5  # seconds until a server is asked once more
AT_ONCE = 32  # questions of one operation
UNASKED = Judged(DnsState.UNKNOWN, problem="not looked up")
UNSET = Judged(DnsState.UNKNOWN, problem="not configured")
LATE = Judged(DnsState.UNKNOWN, problem="no answer in time")
SILENT = Judged(DnsState.UNKNOWN, problem="no name server is known")


@dataclass(frozen=True, slots=True)
class Checked:
    """A record that should be there, and how it was found."""

    advice: Advice
    judged: Judged


@dataclass(frozen=True, slots=True)
class Question:
    """Which domain's records; `check` looks them up."""

    domain: str
    backup: bool
    check: bool

    @classmethod
    def of(cls, row: Picked, *, check: bool) -> "Question":
        """The question about the domain of this row."""
        return cls(row.name, row.backup_mx, check)


async def records(ctx: Context, questions: list[Question]) -> list[list[Checked]]:
    """The records of these domains, in their order. Those looked up share one deadline.

    Forbidden inside a unit of work: it would be held as long.
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
    """The keys whose records these domains should have: their own, else those for all.

    Those for all sign until a key of the domain's own does.
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
    taken = {key.selector for key in own}  # a name in DNS is for one key
    if all(key.waits for key in own):
        return [*own, *(key for key in others if key.selector not in taken)]
    return own


async def look(place: str | None, asked: Sequence[Advice]) -> dict[int, Judged]:
    """What there is of these records, by the id of the advice; at most `DEADLINE` seconds."""
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
    """The records as text, none where DNS says so; why not, where it does not say."""
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
    """A record as people write it; a text is the sum of its parts."""
    if kind == "TXT":
        return b"".join(record.strings).decode(errors="replace")
    return str(record.to_text())

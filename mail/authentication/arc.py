"""ARC (RFC 8617): the check of the chain of a message, and the bytes that its seals sign.

Each server that sends a message on adds an ARC set of three fields with its number: the results
that it found, a signature of the message, and a seal of all sets up to its own.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mail.authentication import dkim
from mail.authentication.dkim import ALGORITHMS, FAILED, Message, Result, Signature, decoded
from mail.authentication.dns_queries import Names, Spent, Unanswered
from mail.authentication.header_fields import Field, Malformed, ascii_tag, tags, unproven
from mail.authentication.public_keys import NoKey, Weak, is_domain, published

MOST = 50  # ARC sets of a message (RFC 8617, section 4.2.1)
RESULTS, SIGNATURE, SEAL = NAMES = (
    "arc-authentication-results",
    "arc-message-signature",
    "arc-seal",
)

_INSTANCE = re.compile(rb"[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,3})[ \t\r\n]*;")


@dataclass(frozen=True, slots=True)
class Link:
    """The three ARC fields of one server."""

    results: Field
    signature: Field
    seal: Field


@dataclass(frozen=True, slots=True)
class Chain:
    """The result of an ARC chain: none, pass or fail; temperror if DNS did not answer."""

    result: Result = Result.NONE
    links: Sequence[Link] = ()  # the oldest first
    sealers: Sequence[str] = ()  # only of a chain that has passed
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Seal:
    """The tags of an ARC-Seal field."""

    field: Field
    domain: str
    selector: str
    algorithm: str
    proof: bytes
    chain: str  # cv=: the result of the chain before this seal


def links(message: Message) -> list[Link]:
    """The ARC sets of a message, the oldest first. Raises MalformedInput if they form no chain."""
    found: dict[str, dict[int, Field]] = {name: {} for name in NAMES}
    for each in message.fields:
        if each.name in found:
            said = _INSTANCE.match(each.value)
            number = int(said[1]) if said else _numbered(each)
            if number in found[each.name]:
                raise Malformed("a link that is there twice")
            found[each.name][number] = each
    many = len(found[SEAL])
    if many > MOST:
        raise Malformed(f"more than {MOST} links")
    if any(sorted(each) != list(range(1, many + 1)) for each in found.values()):
        raise Malformed("a link is missing")
    return [
        Link(found[RESULTS][at], found[SIGNATURE][at], found[SEAL][at]) for at in range(1, many + 1)
    ]


def _numbered(of: Field) -> int:
    """The instance number of a field in which i= is not the first tag. Raises MalformedInput."""
    number = tags(of.value).get("i", "")
    if not number.isdecimal() or not number.isascii() or len(number) > len(str(MOST)):
        raise Malformed("a link without a number")
    return int(number)


async def chain(names: Names, message: Message, now: int) -> Chain:
    """Check the ARC chain of a message (RFC 8617, section 5.2). It never raises."""
    if not message.sound:
        return Chain(Result.FAIL, why="no sound header")
    if not any(each.name in NAMES for each in message.fields):
        return Chain()
    try:
        there = links(message)
        seals = [_seal(each.seal) for each in there]
        signature = _signature(there[-1].signature)
    except Malformed as problem:
        return Chain(Result.FAIL, why=str(problem))
    said = [each.chain for each in seals]
    if said != ["none", *["pass"] * (len(said) - 1)]:
        return Chain(Result.FAIL, there, why="a server before us found it broken")
    await message.make_hashes([signature.body_form])
    proven = [
        dkim.judged(names, message, signature, now),
        *(_judged(names, there, at, seal) for at, seal in enumerate(seals)),
    ]
    came = await asyncio.gather(*proven)
    for result, why in ((each.result, each.why) for each in came):
        if result is not Result.PASS:
            bad = Result.TEMPERROR if result is Result.TEMPERROR else Result.FAIL
            return Chain(bad, there, why=why)
    return Chain(Result.PASS, there, [each.domain for each in seals])


def _signature(of: Field) -> Signature:
    signature = dkim.read(of, tags(of.value))
    if SEAL in signature.signed:
        raise Malformed("a signature over seals")
    return signature


def _seal(of: Field) -> _Seal:
    given = tags(of.value)
    domain, selector = ascii_tag(given, "d").lower(), ascii_tag(given, "s")
    if "h" in given or not (is_domain(domain) and is_domain(selector)):
        raise Malformed("no seal")
    proof = decoded(ascii_tag(given, "b"))
    algorithm = given.get("a", "").lower()
    return _Seal(of, domain, selector, algorithm, proof, given.get("cv", "").lower())


async def _judged(names: Names, there: Sequence[Link], at: int, seal: _Seal) -> dkim.Verdict:
    """Check the seal of the ARC set at `index`. It never raises."""

    def came(result: Result, why: str = "") -> dkim.Verdict:
        return dkim.Verdict(result, seal.domain, seal.selector, why=why)

    if seal.algorithm not in ALGORITHMS:
        return came(Result.POLICY, "an algorithm that proves nothing")
    try:
        key = await published(names, seal.selector, seal.domain)
    except (NoKey, Weak, Spent, Unanswered) as problem:
        return came(FAILED[type(problem)], str(problem))
    digest = hashlib.sha256(sealed_bytes(there[: at + 1])).digest()
    proven = key.proves(seal.algorithm, seal.proof, digest)
    return came(Result.PASS) if proven else came(Result.FAIL, "a seal is broken")


def sealed_bytes(there: Sequence[Link]) -> bytes:
    """The bytes that the seal of the last ARC set signs (RFC 8617, section 5.1.1)."""
    older = [of.relaxed for link in there[:-1] for of in (link.results, link.signature, link.seal)]
    last = there[-1]
    own = unproven(last.seal).relaxed.removesuffix(b"\r\n")
    return b"".join([*older, last.results.relaxed, last.signature.relaxed, own])


def vouched(found: Chain, trusted: Sequence[str], passed: Mapping[int, bool]) -> str | None:
    """The trusted server that has seen DMARC pass, or None.

    All servers that have sealed the message after it must be trusted too. `dmarc_passed` tells
    by index, counted from 0, whether the results of an ARC set contain dmarc=pass.
    """
    if found.result is not Result.PASS:
        return None
    names = {name.lower() for name in trusted}
    for at in reversed(range(len(found.sealers))):
        if found.sealers[at] not in names:
            return None
        if passed.get(at):
            return found.sealers[at]
    return None

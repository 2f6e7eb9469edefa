"""Verification of DKIM signatures (RFC 6376, with RFC 8301 and RFC 8463)."""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path

from mail.authentication.body_canonicalization import Rest, digests, relaxed_body, simple_body
from mail.authentication.dns_queries import Names, Spent, Unanswered
from mail.authentication.header_fields import (
    BLANK,
    Field,
    Malformed,
    ascii_tag,
    beginning,
    chosen,
    divided,
    listed,
    squeezed,
    tags,
    unproven,
)
from mail.authentication.public_keys import NoKey, Weak, is_domain, published
from mail.mime.reader_threads import worked

MOST = 10  # signatures of a message that are checked
ALGORITHMS = ("rsa-sha256", "ed25519-sha256")  # rsa-sha1 proves nothing (RFC 8301)
SMALL = 64 << 10  # bytes; a larger body is hashed in a thread
SIGNED = 300  # field names that one signature can list
SHOWN = 8  # characters of header.b, which identify a signature (RFC 6008)

_NUMBER = re.compile(r"[0-9]{1,12}")


class Result(StrEnum):
    """The result of an authentication check in the terms of RFC 8601."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    POLICY = "policy"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


FAILED: dict[type[Exception], Result] = {  # the result if there is no usable key
    NoKey: Result.PERMERROR,
    Spent: Result.PERMERROR,
    Unanswered: Result.TEMPERROR,
    Weak: Result.POLICY,
}


@dataclass(frozen=True, slots=True)
class Signature:
    """The tags of a DKIM-Signature or ARC-Message-Signature field."""

    field: Field
    domain: str
    selector: str
    algorithm: str
    proof: bytes
    body_hash: bytes
    signed: Sequence[str]  # names of fields, in lower case
    header_form: str  # relaxed or simple
    body_form: str
    expires: int | None  # seconds since 1970
    agent: str  # the domain of i=

    @property
    def shown(self) -> str:
        """The beginning of the signature, which identifies it in header.b (RFC 6008)."""
        return base64.b64encode(self.proof).decode()[:SHOWN]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one signature. Domain and selector are "" if the signature has none."""

    result: Result
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    shown: str = ""
    why: str = ""


@dataclass
class Message:
    """The header fields and the body of a message, for the check and making of signatures."""

    fields: Sequence[Field]
    body: bytes | Rest
    sound: bool = True  # every line of its header is part of a field
    _hashes: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def named(self) -> Mapping[str, Sequence[Field]]:
        """The fields by name, in their order."""
        found: dict[str, list[Field]] = {}
        for each in self.fields:
            found.setdefault(each.name, []).append(each)
        return found

    @classmethod
    def of(cls, raw: bytes) -> "Message":
        """Read the message in these bytes."""
        try:
            return cls(*divided(raw))
        except Malformed:
            return cls((), b"", sound=False)

    @classmethod
    def hashed(cls, head: bytes, body: bytes) -> "Message":
        """A message with this header, and only the digest of the relaxed body."""
        try:
            return cls(listed(head), b"", _hashes={"relaxed": body})
        except Malformed:
            return cls((), b"", sound=False)

    @classmethod
    def filed(cls, path: Path) -> "Message":
        """The message in a file, of which only the header is read."""
        head, start = beginning(path)
        try:
            return cls(listed(head), Rest(path, start))
        except Malformed:
            return cls((), b"", sound=False)

    @classmethod
    async def whole(cls, source: bytes | Path) -> "Message":
        """Read a message from bytes or a file; a large one in a thread."""
        if isinstance(source, Path):
            return await asyncio.to_thread(cls.filed, source)
        return cls.of(source) if len(source) < SMALL else await asyncio.to_thread(cls.of, source)

    def body_hash(self, form: str) -> bytes:
        """The SHA-256 of the whole body in a form. The tag l= is ignored.

        Computes it if `make_hashes` has not; for a body in a file call `make_hashes`
        before.
        """
        if form not in self._hashes:
            self._hashes[form] = _hash(self.body, form)
        return self._hashes[form]

    async def make_hashes(self, forms: Iterable[str]) -> None:
        """Compute body hashes: of a large body in a thread, of a file in a helper process."""
        body = self.body
        if isinstance(body, Rest):
            if wanted := sorted(set(forms) - self._hashes.keys()):
                self._hashes |= await worked(
                    partial(digests, start=body.start, forms=wanted), body.path
                )
            return
        for form in set(forms):
            if len(body) < SMALL:
                self.body_hash(form)
            else:
                await asyncio.to_thread(self.body_hash, form)


def _hash(body: bytes | Rest, form: str) -> bytes:
    if isinstance(body, Rest):
        return digests(body.path, body.start, [form])[form]
    made = relaxed_body(body) if form == "relaxed" else simple_body(body)
    return hashlib.sha256(made).digest()


def decoded(text: str) -> bytes:
    """Decode base64 that can contain white space. Raises MalformedInput."""
    try:
        return base64.b64decode(squeezed(text), validate=True)
    except (ValueError, binascii.Error) as problem:
        raise Malformed("no Base64") from problem


def read(of: Field, given: Mapping[str, str]) -> Signature:
    """Parse a DKIM-Signature or ARC-Message-Signature field. Raises MalformedInput."""
    header_form, _, body_form = given.get("c", "simple/simple").lower().partition("/")
    body_form = body_form or "simple"
    if not {header_form, body_form} <= {"relaxed", "simple"}:
        raise Malformed("no such canonical form")
    domain, selector = ascii_tag(given, "d").lower(), ascii_tag(given, "s")
    if not (is_domain(domain) and is_domain(selector)):
        raise Malformed("no domain or selector")
    signed = [name.strip(BLANK).lower() for name in given.get("h", "").split(":", SIGNED)]
    if "from" not in signed or len(signed) > SIGNED:
        raise Malformed("From is not signed")
    if "dns/txt" not in given.get("q", "dns/txt").lower():
        raise Malformed("a key that is not in DNS")
    return Signature(
        of,
        domain,
        selector,
        given.get("a", "").lower(),
        decoded(ascii_tag(given, "b")),
        decoded(ascii_tag(given, "bh")),
        signed,
        header_form,
        body_form,
        _expiry(given),
        given.get("i", f"@{domain}").rpartition("@")[2].lower(),
    )


def _expiry(given: Mapping[str, str]) -> int | None:
    """The time of x= in seconds since 1970, or None. Raises MalformedInput."""
    times = [given[name] for name in ("t", "x") if name in given]
    if any(not _NUMBER.fullmatch(each) for each in times):
        raise Malformed("no time")
    if "x" not in given:
        return None
    if "t" in given and int(given["x"]) <= int(given["t"]):
        raise Malformed("it ends before it begins")
    return int(given["x"])


def _own(of: Field) -> Signature:
    """Parse a DKIM-Signature field. Raises MalformedInput."""
    given = tags(of.value)
    if given.get("v") != "1":
        raise Malformed("no version 1")
    signature = read(of, given)
    if not f".{signature.agent}".endswith(f".{signature.domain}"):
        raise Malformed("i= is of another domain")
    return signature


async def verified(names: Names, message: Message, now: int, author: str) -> list[Verdict]:
    """Verify the DKIM signatures of a message; those of the author's domain come first.

    It never raises. `now` is in seconds since 1970.
    """
    if not message.sound:
        return [Verdict(Result.PERMERROR, why="no sound header")]
    found: list[Signature | Verdict] = []
    for each in [each for each in message.fields if each.name == "dkim-signature"][:MOST]:
        try:
            found.append(_own(each))
        except Malformed as problem:
            found.append(Verdict(Result.PERMERROR, why=str(problem)))
    found.sort(key=lambda each: not _fits(each.domain, author))
    await message.make_hashes(each.body_form for each in found if isinstance(each, Signature))

    async def verdict(of: Signature | Verdict) -> Verdict:
        return of if isinstance(of, Verdict) else await judged(names, message, of, now)

    return await asyncio.gather(*map(verdict, found))


def _fits(domain: str, author: str) -> bool:
    return f".{domain}".endswith(f".{author}") or f".{author}".endswith(f".{domain}")


async def judged(names: Names, message: Message, of: Signature, now: int) -> Verdict:
    """Verify one signature of DKIM, or of ARC over the message. It never raises."""

    def came(result: Result, why: str = "") -> Verdict:
        return Verdict(result, of.domain, of.selector, of.algorithm, of.shown, why)

    if of.algorithm not in ALGORITHMS:
        return came(Result.POLICY, "an algorithm that proves nothing")
    if of.expires is not None and of.expires < now:
        return came(Result.FAIL, "it has expired")
    if message.body_hash(of.body_form) != of.body_hash:
        return came(Result.FAIL, "the body was changed")
    try:
        key = await published(names, of.selector, of.domain)
    except (NoKey, Weak, Spent, Unanswered) as problem:
        return came(FAILED[type(problem)], str(problem))
    if key.strict and of.agent != of.domain:
        return came(Result.PERMERROR, "i= is of another domain")
    proven = key.proves(of.algorithm, of.proof, header_digest(message, of))
    return came(Result.PASS) if proven else came(Result.FAIL, "the header was changed")


def header_digest(message: Message, of: Signature) -> bytes:
    """The SHA-256 of the signed fields, and of the signature field with an empty b=."""

    def form(each: Field) -> bytes:
        return each.relaxed if of.header_form == "relaxed" else each.raw

    # From once more than h= names it, so that an added From field breaks the signature
    signed = chosen(message.named, [*of.signed, "from"])
    made = b"".join(map(form, signed)) + form(unproven(of.field)).removesuffix(b"\r\n")
    return hashlib.sha256(made).digest()

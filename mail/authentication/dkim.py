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

from mail.authentication.body_canonicalization import (
    BodyFile,
    body_digests,
    relaxed_body,
    simple_body,
)
from mail.authentication.dns_queries import DnsLimitExceeded, DnsUnavailable, MessageDns
from mail.authentication.header_fields import (
    WHITE_SPACE,
    CanonicalField,
    MalformedInput,
    fields_covered_by_signature,
    parse_canonical_fields,
    parse_tags,
    parse_well_formed_fields_and_crlf_body,
    read_header_and_body_offset,
    required_ascii_tag,
    without_signature,
    without_white_space,
)
from mail.authentication.public_keys import KeyNotFound, WeakKey, find_key, is_domain
from mail.mime.reader_threads import run_by_message_size

MAX_SIGNATURES = 10  # signatures of a message that are checked
ALGORITHMS = ("rsa-sha256", "ed25519-sha256")  # rsa-sha1 proves nothing (RFC 8301)
THREAD_THRESHOLD = 64 << 10  # bytes; a larger body is hashed in a thread
MAX_SIGNED_FIELDS = 300  # field names that one signature can list
SHORT_SIGNATURE_LENGTH = 8  # characters of header.b, which identify a signature (RFC 6008)

_NUMBER = re.compile(r"[0-9]{1,12}")


class AuthResult(StrEnum):
    """The result of an authentication check in the terms of RFC 8601."""

    NONE = "none"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    NEUTRAL = "neutral"
    POLICY = "policy"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


RESULT_BY_KEY_ERROR: dict[type[Exception], AuthResult] = {  # the result if there is no usable key
    KeyNotFound: AuthResult.PERMERROR,
    DnsLimitExceeded: AuthResult.PERMERROR,
    DnsUnavailable: AuthResult.TEMPERROR,
    WeakKey: AuthResult.POLICY,
}


@dataclass(frozen=True, slots=True)
class MessageSignature:
    """The tags of a DKIM-Signature or ARC-Message-Signature field."""

    field: CanonicalField
    domain: str
    selector: str
    algorithm: str
    signature: bytes
    body_hash: bytes
    signed_fields: Sequence[str]  # names of fields, in lower case
    header_form: str  # relaxed or simple
    body_form: str
    expires: int | None  # seconds since 1970
    identity_domain: str  # the domain of i=

    @property
    def short_signature(self) -> str:
        """The beginning of the signature, which identifies it in header.b (RFC 6008)."""
        return base64.b64encode(self.signature).decode()[:SHORT_SIGNATURE_LENGTH]


@dataclass(frozen=True, slots=True)
class DkimResult:
    """The result of one signature. Domain and selector are "" if the signature has none."""

    result: AuthResult
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    short_signature: str = ""
    reason: str = ""


@dataclass
class SignedMessage:
    """The header fields and the body of a message, for the check and making of signatures."""

    fields: Sequence[CanonicalField]
    body: bytes | BodyFile
    is_well_formed: bool = True  # every line of its header is part of a field
    _body_hashes: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def fields_by_name(self) -> Mapping[str, Sequence[CanonicalField]]:
        """The fields by name, in their order."""
        fields: dict[str, list[CanonicalField]] = {}
        for header_field in self.fields:
            fields.setdefault(header_field.name, []).append(header_field)
        return fields

    @classmethod
    def from_bytes(cls, raw: bytes) -> "SignedMessage":
        """Read the message in these bytes."""
        try:
            return cls(*parse_well_formed_fields_and_crlf_body(raw))
        except MalformedInput:
            return cls((), b"", is_well_formed=False)

    @classmethod
    def from_header_and_body_hash(cls, header: bytes, relaxed_body_hash: bytes) -> "SignedMessage":
        """A message with this header, and only the digest of the relaxed body."""
        try:
            return cls(
                parse_canonical_fields(header), b"", _body_hashes={"relaxed": relaxed_body_hash}
            )
        except MalformedInput:
            return cls((), b"", is_well_formed=False)

    @classmethod
    def from_file(cls, path: Path) -> "SignedMessage":
        """The message in a file, of which only the header is read."""
        head, start = read_header_and_body_offset(path)
        try:
            return cls(parse_canonical_fields(head), BodyFile(path, start))
        except MalformedInput:
            return cls((), b"", is_well_formed=False)

    @classmethod
    async def read(cls, source: bytes | Path) -> "SignedMessage":
        """Read a message from bytes or a file; a large one in a thread."""
        if isinstance(source, Path):
            return await asyncio.to_thread(cls.from_file, source)
        return (
            cls.from_bytes(source)
            if len(source) < THREAD_THRESHOLD
            else await asyncio.to_thread(cls.from_bytes, source)
        )

    def body_hash(self, form: str) -> bytes:
        """The SHA-256 of the whole body in a form. The tag l= is ignored.

        Computes it if `compute_body_hashes` has not. For a body in a file call that before.
        """
        if form not in self._body_hashes:
            self._body_hashes[form] = _body_hash(self.body, form)
        return self._body_hashes[form]

    async def compute_body_hashes(self, forms: Iterable[str]) -> None:
        """Compute body hashes: of a large body in a thread, of a file in a helper process."""
        body = self.body
        if isinstance(body, BodyFile):
            if missing_forms := sorted(set(forms) - self._body_hashes.keys()):
                self._body_hashes |= await run_by_message_size(
                    partial(body_digests, body_start=body.start, forms=missing_forms), body.path
                )
            return
        for form in set(forms):
            if len(body) < THREAD_THRESHOLD:
                self.body_hash(form)
            else:
                await asyncio.to_thread(self.body_hash, form)


def _body_hash(body: bytes | BodyFile, form: str) -> bytes:
    if isinstance(body, BodyFile):
        return body_digests(body.path, body.start, [form])[form]
    canonical_body = relaxed_body(body) if form == "relaxed" else simple_body(body)
    return hashlib.sha256(canonical_body).digest()


def decode_base64(text: str) -> bytes:
    """Decode base64 that can contain white space. Raises MalformedInput."""
    try:
        return base64.b64decode(without_white_space(text), validate=True)
    except (ValueError, binascii.Error) as problem:
        raise MalformedInput("invalid base64") from problem


def parse_signature(
    signature_field: CanonicalField, field_tags: Mapping[str, str]
) -> MessageSignature:
    """Parse a DKIM-Signature or ARC-Message-Signature field. Raises MalformedInput."""
    header_form, _, body_form = field_tags.get("c", "simple/simple").lower().partition("/")
    body_form = body_form or "simple"
    if not {header_form, body_form} <= {"relaxed", "simple"}:
        raise MalformedInput("unknown canonicalization in c=")
    domain = required_ascii_tag(field_tags, "d").lower()
    selector = required_ascii_tag(field_tags, "s")
    if not (is_domain(domain) and is_domain(selector)):
        raise MalformedInput("invalid d= or s=")
    signed = [
        name.strip(WHITE_SPACE).lower()
        for name in field_tags.get("h", "").split(":", MAX_SIGNED_FIELDS)
    ]
    if "from" not in signed or len(signed) > MAX_SIGNED_FIELDS:
        raise MalformedInput("From header field not signed")
    if "dns/txt" not in field_tags.get("q", "dns/txt").lower():
        raise MalformedInput("unsupported query method in q=")
    return MessageSignature(
        signature_field,
        domain,
        selector,
        field_tags.get("a", "").lower(),
        decode_base64(required_ascii_tag(field_tags, "b")),
        decode_base64(required_ascii_tag(field_tags, "bh")),
        signed,
        header_form,
        body_form,
        _parse_expiry_or_none(field_tags),
        field_tags.get("i", f"@{domain}").rpartition("@")[2].lower(),
    )


def _parse_expiry_or_none(field_tags: Mapping[str, str]) -> int | None:
    """The time of x= in seconds since 1970, or None. Raises MalformedInput."""
    times = [field_tags[name] for name in ("t", "x") if name in field_tags]
    if any(not _NUMBER.fullmatch(time) for time in times):
        raise MalformedInput("invalid timestamp in t= or x=")
    if "x" not in field_tags:
        return None
    if "t" in field_tags and int(field_tags["x"]) <= int(field_tags["t"]):
        raise MalformedInput("x= is not later than t=")
    return int(field_tags["x"])


def _parse_dkim_signature(signature_field: CanonicalField) -> MessageSignature:
    """Parse a DKIM-Signature field. Raises MalformedInput."""
    tags = parse_tags(signature_field.value)
    if tags.get("v") != "1":
        raise MalformedInput("unsupported version in v=")
    signature = parse_signature(signature_field, tags)
    if not f".{signature.identity_domain}".endswith(f".{signature.domain}"):
        raise MalformedInput("i= is not in the domain of d=")
    return signature


async def verify_signatures(
    dns: MessageDns, message: SignedMessage, now: int, author_domain: str
) -> list[DkimResult]:
    """Verify the DKIM signatures of a message; those of the author's domain come first.

    It never raises. `now` is in seconds since 1970.
    """
    if not message.is_well_formed:
        return [DkimResult(AuthResult.PERMERROR, reason="malformed message header")]
    signatures: list[MessageSignature | DkimResult] = []
    for header_field in [
        header_field for header_field in message.fields if header_field.name == "dkim-signature"
    ][:MAX_SIGNATURES]:
        try:
            signatures.append(_parse_dkim_signature(header_field))
        except MalformedInput as problem:
            signatures.append(DkimResult(AuthResult.PERMERROR, reason=str(problem)))
    signatures.sort(key=lambda signature: not _is_related_domain(signature.domain, author_domain))
    await message.compute_body_hashes(
        signature.body_form for signature in signatures if isinstance(signature, MessageSignature)
    )

    async def verify_unless_known(signature: MessageSignature | DkimResult) -> DkimResult:
        if isinstance(signature, DkimResult):
            return signature
        return await verify_signature(dns, message, signature, now)

    return await asyncio.gather(*map(verify_unless_known, signatures))


def _is_related_domain(domain: str, author_domain: str) -> bool:
    return f".{domain}".endswith(f".{author_domain}") or f".{author_domain}".endswith(f".{domain}")


async def verify_signature(
    dns: MessageDns, message: SignedMessage, signature: MessageSignature, now: int
) -> DkimResult:
    """Verify one signature of DKIM, or of ARC over the message. It never raises."""

    def signature_result(result: AuthResult, why: str = "") -> DkimResult:
        return DkimResult(
            result,
            signature.domain,
            signature.selector,
            signature.algorithm,
            signature.short_signature,
            why,
        )

    if signature.algorithm not in ALGORITHMS:
        return signature_result(AuthResult.POLICY, "unsupported signature algorithm")
    if signature.expires is not None and signature.expires < now:
        return signature_result(AuthResult.FAIL, "signature expired")
    if message.body_hash(signature.body_form) != signature.body_hash:
        return signature_result(AuthResult.FAIL, "body hash did not verify")
    try:
        key = await find_key(dns, signature.selector, signature.domain)
    except (KeyNotFound, WeakKey, DnsLimitExceeded, DnsUnavailable) as problem:
        return signature_result(RESULT_BY_KEY_ERROR[type(problem)], str(problem))
    if key.requires_exact_identity and signature.identity_domain != signature.domain:
        return signature_result(AuthResult.PERMERROR, "i= is not in the domain of d=")
    proven = key.is_valid_signature(
        signature.algorithm, signature.signature, header_digest(message, signature)
    )
    return (
        signature_result(AuthResult.PASS)
        if proven
        else signature_result(AuthResult.FAIL, "signature did not verify")
    )


def header_digest(message: SignedMessage, signature: MessageSignature) -> bytes:
    """The SHA-256 of the signed fields, and of the signature field with an empty b=."""

    def canonical_field(header_field: CanonicalField) -> bytes:
        return header_field.relaxed_form if signature.header_form == "relaxed" else header_field.raw

    # From once more than h= names it, so that an added From field breaks the signature
    signed = fields_covered_by_signature(message.fields_by_name, [*signature.signed_fields, "from"])
    signed_data = b"".join(map(canonical_field, signed)) + canonical_field(
        without_signature(signature.field)
    ).removesuffix(b"\r\n")
    return hashlib.sha256(signed_data).digest()

"""Rewriting of envelope senders of redirected messages (Sender Rewriting Scheme, SRS).

Receivers check by SPF (RFC 7208) whether this server can send for the sender's domain. So a
redirected message gets a sender here that contains the original sender, the day and a signature:
`SRS0=signature=day=domain=local@here`. A server that redirects it again writes
`SRS1=signature=first==rest@there`: a bounce returns over the first server, and no address is nested
twice.

A local part has at most 64 octets (RFC 5321, section 4.5.3.1.1), and many servers accept only
ASCII. If the SRS address of a queued message does not fit, it is sent as
`SRS0=signature=day==queue-id`. The queue has the long form (`Submission.envelope_from`).
"""

import hmac
import re
from base64 import b32encode
from contextlib import suppress
from datetime import timedelta

from mail.addresses.quoted_local_part import join_address, split_address, unquoted_local_part
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint

MAX_AGE = timedelta(days=21)  # later bounces are refused
DAY_PERIOD = 1024  # days until the two letters of the day repeat
LETTERS = (
    "abcdefghijklmnopqrstuvwxyz234567"  # base32 in lower case, since some relays change the case
)
SIGNATURE_LENGTH = 8  # letters of 5 bits
MAX_LOCAL_PART_OCTETS = 64

_SRS0 = re.compile(r"srs0[=+-]([a-z2-7]{8})=([a-z2-7]{2})=([^=@]+)=(.*)", re.IGNORECASE)
_SHORT = re.compile(r"srs0[=+-]([a-z2-7]{8})=([a-z2-7]{2})==([0-9a-f]{20})", re.IGNORECASE)
_SRS1 = re.compile(r"srs1[=+-]([a-z2-7]{8})=([^=@]+)=(.+)", re.IGNORECASE)
_ANY_SRS = re.compile(r"srs([01])[=+-](.+)", re.IGNORECASE)


def rewrite_sender(environment: Environment, sender: str, local_domain: str) -> str:
    """Return the SRS sender at a local domain for a redirected message.

    The empty sender of bounces stays empty. The local part is in quotes if it needs them.
    """
    if not sender.rpartition("@")[0]:
        return ""
    return join_address(_srs_local_part(environment, *split_address(sender)), local_domain)


def _srs_local_part(environment: Environment, local: str, sender_domain: str) -> str:
    """Return the SRS local part, without quotes, of a sender whose local part has no quotes."""
    if match := _ANY_SRS.fullmatch(local):
        version, rest = match.groups()
        first, rest = (
            (sender_domain, f"={rest}") if version == "0" else _parse_srs1_domain_and_rest(rest)
        )
        return f"SRS1={_srs_signature(environment, first, rest)}={first}={rest}"
    day = _encoded_today(environment)
    proof = _srs_signature(environment, day, sender_domain, local)
    return f"SRS0={proof}={day}={sender_domain}={local}"


def _parse_srs1_domain_and_rest(rest: str) -> tuple[str, str]:
    """Return the first domain and the rest of an SRS1 local part, after its signature."""
    first, _, timestamp_and_rest = rest.partition("=")[2].partition("=")
    return first, timestamp_and_rest


def sendable_sender(environment: Environment, sender: str, queue_id: str) -> str:
    """Return the envelope sender of a queued message as it is sent.

    An SRS sender of this server has the short form if its local part is too long or not ASCII.
    """
    local, _, domain = sender.rpartition("@")
    if len(local) <= MAX_LOCAL_PART_OCTETS and local.isascii():
        return sender
    if original_sender_or_same(environment, sender) == sender:
        return sender
    day = _encoded_today(environment)
    return f"SRS0={_srs_signature(environment, day, '', queue_id)}={day}=={queue_id}@{domain}"


def verified_queue_id_or_none(environment: Environment, srs_local_part: str) -> str | None:
    """Return the queue id in the short form of an SRS local part; None if it has the long form.

    Raises InvalidInput as `verified_original_sender`.
    """
    match = _SHORT.fullmatch(unquoted_local_part(srs_local_part))
    if match is None:
        return None
    proof, day, queue_id = match.groups()
    day, queue_id = day.lower(), queue_id.lower()
    signature = _srs_signature(environment, day, "", queue_id)
    if not (_is_same_signature(proof, signature) and _is_recent(environment, day)):
        raise _invalid_srs_error()
    return queue_id


def is_srs(local_part: str) -> bool:
    """True if a local part, with or without quotes, has the form of an SRS sender."""
    return bool(_ANY_SRS.fullmatch(unquoted_local_part(local_part)))


def verified_original_sender(environment: Environment, srs_local_part: str) -> str:
    """Return the original sender that a bounce to an SRS local part goes to.

    The local part can be in quotes. Raises InvalidInput if the signature is not ours or the day is
    more than 21 days ago.
    """
    srs_local_part = unquoted_local_part(srs_local_part)
    if match := _SRS0.fullmatch(srs_local_part):
        proof, day, original_domain, name = match.groups()
        if _is_same_signature(
            proof, _srs_signature(environment, day.lower(), original_domain, name)
        ) and _is_recent(environment, day.lower()):
            return join_address(name, original_domain)
    elif match := _SRS1.fullmatch(srs_local_part):
        proof, first, rest = match.groups()
        if _is_same_signature(proof, _srs_signature(environment, first, rest)):
            return join_address(f"SRS0{rest}", first)
    raise _invalid_srs_error()


def original_sender_or_same(environment: Environment, sender: str) -> str:
    """Return the original sender of an SRS address of this server; other senders as they are."""
    local_part = sender.rpartition("@")[0]
    if is_srs(local_part):
        with suppress(InvalidInput):  # an SRS address of another server, or an expired one
            return verified_original_sender(environment, local_part)
    return sender


def _invalid_srs_error() -> InvalidInput:
    return InvalidInput(
        "The SRS address is invalid or expired.",
        constraint=ValidationConstraint.SRS,
        path=["address"],
    )


def _is_same_signature(received: str, signature: str) -> bool:
    return hmac.compare_digest(received.lower(), signature)


def _srs_signature(environment: Environment, *parts: str) -> str:
    """The signature of the parts of an SRS address, in lower case.

    It does not depend on the case of the parts, since relays may change it.
    """
    signed_text = "\0".join(["srs", *parts]).lower().encode()
    return (
        b32encode(hmac.digest(environment.signing_secret, signed_text, "sha256"))
        .decode()[:SIGNATURE_LENGTH]
        .lower()
    )


def _encoded_today(environment: Environment) -> str:
    return _encode_day(_day_number(environment))


def _day_number(environment: Environment) -> int:
    return int(environment.now().timestamp() // 86400) % DAY_PERIOD


def _encode_day(day_number: int) -> str:
    return LETTERS[day_number >> 5] + LETTERS[day_number & 31]


def _is_recent(environment: Environment, encoded_day: str) -> bool:
    day_number = LETTERS.index(encoded_day[0]) << 5 | LETTERS.index(encoded_day[1])
    return (_day_number(environment) - day_number) % DAY_PERIOD <= MAX_AGE.days

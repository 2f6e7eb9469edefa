"""DKIM signatures of local domains over the messages they send (RFC 6376, RFC 8463)."""

import asyncio
import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mail.authentication.arc_seal import SIGNED_FIELDS
from mail.authentication.dkim import SignedMessage, header_digest, parse_signature
from mail.authentication.header_fields import parse_tags
from mail.authentication.private_keys import Algorithm, DkimSigner
from mail.authentication.signature_fields import (
    append_signature,
    build_folded_signature_field,
    fold_names,
)

FIELD_NAME = "dkim-signature"
OVERSIGNED_FIELDS = frozenset({"from", "subject", "date", "to", "cc", "reply-to", "message-id"})


async def make_signature_fields_or_empty(
    signers: Sequence[DkimSigner], source: bytes | Path, now: int, lifetime: int | None = None
) -> bytes:
    """Sign a message and return the DKIM-Signature fields, RSA first; empty for a broken header.

    Fields in OVERSIGNED_FIELDS are named once more than they occur, so that none can be added
    (RFC 6376, section 5.4.2). `lifetime` is in seconds.
    """
    return await make_signature_fields_of_parsed_or_empty(
        await SignedMessage.read(source), signers, now, lifetime
    )


async def make_signature_fields_of_parsed_or_empty(
    message: SignedMessage, signers: Sequence[DkimSigner], now: int, lifetime: int | None = None
) -> bytes:
    """Sign a message that was already read and perhaps hashed.

    See `make_signature_fields_or_empty`.
    """
    if not signers or not message.is_well_formed or "from" not in message.fields_by_name:
        return b""
    await message.compute_body_hashes(["relaxed"])
    order = sorted(signers, key=lambda signer: signer.key.algorithm is not Algorithm.RSA)
    return await asyncio.to_thread(_make_signatures, order, message, now, lifetime)


def _make_signatures(
    signers: Sequence[DkimSigner], message: SignedMessage, now: int, lifetime: int | None
) -> bytes:
    return b"".join(_make_signature_field(signer, message, now, lifetime) for signer in signers)


def _make_signature_field(
    signer: DkimSigner, message: SignedMessage, now: int, lifetime: int | None
) -> bytes:
    field_counts = Counter(field.name for field in message.fields if field.name in SIGNED_FIELDS)
    field_counts.pop(FIELD_NAME, None)  # signatures of other servers are not signed
    names = [
        name
        for name, field_count in field_counts.items()
        for _ in range(field_count + (name in OVERSIGNED_FIELDS))
    ]
    names += sorted(OVERSIGNED_FIELDS - field_counts.keys())
    times = [f"t={now}", *([f"x={now + lifetime}"] if lifetime else [])]
    body = base64.b64encode(message.body_hash("relaxed")).decode()
    head = [
        *("v=1", f"a={signer.key.algorithm_tag}", "c=relaxed/relaxed"),
        *(f"d={signer.domain}", f"s={signer.selector}", *times),
        *(f"h={fold_names(names)}", f"bh={body}", "b="),
    ]
    bare = build_folded_signature_field(FIELD_NAME, head)
    signature = parse_signature(bare, {**parse_tags(bare.value), "b": "AA=="})
    return append_signature(bare, signer.key.sign, header_digest(message, signature)).raw

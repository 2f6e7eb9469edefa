"""DKIM signatures of local domains over the messages they send (RFC 6376, RFC 8463)."""

import asyncio
import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mail.authentication.arc_seal import SIGNED
from mail.authentication.dkim import Message, header_digest, read
from mail.authentication.header_fields import tags
from mail.authentication.private_keys import Algorithm, Signer
from mail.authentication.signature_fields import field_of, folded, proven

NAME = "dkim-signature"
ONCE_MORE = frozenset({"from", "subject", "date", "to", "cc", "reply-to", "message-id"})


async def signatures(
    signers: Sequence[Signer], source: bytes | Path, now: int, life: int | None = None
) -> bytes:
    """Sign a message and return the DKIM-Signature fields, RSA first; empty for a broken header.

    Fields in OVERSIGNED_FIELDS are named once more than they occur, so that none can be added
    (RFC 6376, section 5.4.2). `lifetime` is in seconds.
    """
    return await over(await Message.whole(source), signers, now, life)


async def over(
    message: Message, signers: Sequence[Signer], now: int, life: int | None = None
) -> bytes:
    """Sign a message that was already read and perhaps hashed.

    See `sign_message`.
    """
    if not signers or not message.sound or "from" not in message.named:
        return b""
    await message.make_hashes(["relaxed"])
    order = sorted(signers, key=lambda one: one.key.algorithm is not Algorithm.RSA)
    return await asyncio.to_thread(_made, order, message, now, life)


def _made(signers: Sequence[Signer], message: Message, now: int, life: int | None) -> bytes:
    return b"".join(_one(one, message, now, life) for one in signers)


def _one(signer: Signer, message: Message, now: int, life: int | None) -> bytes:
    there = Counter(each.name for each in message.fields if each.name in SIGNED)
    there.pop(NAME, None)  # signatures of other servers are not signed
    names = [name for name, many in there.items() for _ in range(many + (name in ONCE_MORE))]
    names += sorted(ONCE_MORE - there.keys())
    times = [f"t={now}", *([f"x={now + life}"] if life else [])]
    body = base64.b64encode(message.body_hash("relaxed")).decode()
    head = [
        *("v=1", f"a={signer.key.name}", "c=relaxed/relaxed"),
        *(f"d={signer.domain}", f"s={signer.selector}", *times),
        *(f"h={folded(names)}", f"bh={body}", "b="),
    ]
    bare = field_of(NAME, head)
    signature = read(bare, {**tags(bare.value), "b": "AA=="})
    return proven(bare, signer.key.sign, header_digest(message, signature)).raw

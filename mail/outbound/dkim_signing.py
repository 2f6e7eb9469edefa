"""DKIM signatures on outgoing messages, over the bytes that are sent.

They are made for each attempt, so they always use a current key. Their time is that of the
submission, so the same key gives the same signature.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from mail.authentication import author_domains, dkim, signing_keys
from mail.authentication.body_canonicalization import RelaxedBodyConverter
from mail.authentication.dkim_signature import make_signature_fields_of_parsed_or_empty
from mail.authentication.header_fields import MAX_HEADER_SIZE, split_header_and_body
from mail.authentication.private_keys import DkimSigner
from mail.envelope.delivery_jobs import DeliveryJob
from mail.outbound.wire_format import StreamedBytes, WireMessage
from models.observability import metrics
from models.runtime.environment import Environment

SIGNED_COUNTER = metrics.counter(
    "merganser_dkim_signed",
    "Outgoing messages: signed; unsigned, the author's domain has no key; header, it "
    "can't be parsed.",
    "outcome",
)
CACHED_BYTES = 2000  # estimated size of cached signatures of a large message


async def sign_if_submitted_here(
    environment: Environment, job: DeliveryJob, message: WireMessage
) -> WireMessage:
    """Add DKIM signatures with the keys of the author's domain and of the host.

    Returns the message unchanged if it was not submitted here, there is no key, or its header can't
    be read. Later changes of the message would break the signatures.
    """
    if not job.originates_here:
        return message
    header, _ = split_header_and_body(message.header_or_whole_message_bytes)
    author_domain = next(iter(author_domains(header[:MAX_HEADER_SIZE])), None)
    signers = await _load_author_and_host_signers(environment, author_domain)
    if not signers:
        SIGNED_COUNTER.add("unsigned")
        return message
    fields = await _make_or_load_cached_signature_fields(environment, job, message, signers)
    SIGNED_COUNTER.add("signed" if fields else "header")
    return _with_prepended_fields(message, fields) if fields else message


async def _load_author_and_host_signers(
    environment: Environment, author_domain: str | None
) -> Sequence[DkimSigner]:
    """Load the signers of the author's domain, and those of the host if that is enabled."""
    signers = (
        await signing_keys.load_own_or_published_shared_signers(environment, author_domain)
        if author_domain
        else []
    )
    if environment.options.dkim_sign_host_domain:
        host_signers = await signing_keys.load_signers_of_host_or_parent(environment)
        signers += [signer for signer in host_signers if signer.domain != author_domain]
    return signers


async def _make_or_load_cached_signature_fields(
    environment: Environment, job: DeliveryJob, message: WireMessage, signers: Sequence[DkimSigner]
) -> bytes:
    """The DKIM-Signature fields of a message. Those of a streamed message are cached."""
    signed_at = int(job.created_at.timestamp())
    if not isinstance(message.data, StreamedBytes):
        return await make_signature_fields_of_parsed_or_empty(
            await dkim.SignedMessage.read(message.data), signers, signed_at
        )
    key_names = tuple(
        (signer.domain, signer.selector, signer.key.public_key_text()) for signer in signers
    )
    cache_key = "dkim", job.submission_id, message.data.size, key_names
    fields: bytes | None = environment.byte_cache.get(cache_key)
    if fields is None:
        head, _ = split_header_and_body(message.data.first_piece)
        body_hash = await _relaxed_body_hash_of_stream(
            message.data, message.data.first_piece.find(b"\r\n\r\n")
        )
        fields = await make_signature_fields_of_parsed_or_empty(
            dkim.SignedMessage.from_header_and_body_hash(head, body_hash), signers, signed_at
        )
        environment.byte_cache.put(cache_key, fields, CACHED_BYTES)
    return fields


async def _relaxed_body_hash_of_stream(message: StreamedBytes, header_end: int) -> bytes:
    """SHA-256 of the body in relaxed canonicalization.

    `header_end` is the position of the empty line in the first piece, or negative.
    """
    digest = hashlib.sha256()
    canonicalization = RelaxedBodyConverter()
    start = header_end + 4 if header_end >= 0 else None

    def update_digest(chunk: bytes) -> None:
        for part in canonicalization.convert(chunk):
            digest.update(part)

    async with aclosing(message.open_stream()) as chunks:
        async for chunk in chunks:
            if start is not None:
                await asyncio.to_thread(update_digest, chunk[start:])
                start = 0
    for part in canonicalization.remaining_bytes():
        digest.update(part)
    return digest.digest()


def _with_prepended_fields(message: WireMessage, fields: bytes) -> WireMessage:
    """A copy of the message with these header fields on top."""
    data = message.data
    if not isinstance(data, StreamedBytes):
        return replace(message, data=fields + data)
    return replace(
        message,
        data=StreamedBytes(
            len(fields) + data.size,
            fields + data.first_piece,
            partial(_stream_with_fields, fields, data),
        ),
    )


async def _stream_with_fields(fields: bytes, message: StreamedBytes) -> AsyncGenerator[bytes]:
    """Stream the fields together with the first piece, then the other pieces."""
    async with aclosing(message.open_stream()) as chunks:
        async for chunk in chunks:
            yield fields + chunk
            fields = b""

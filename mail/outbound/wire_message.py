"""Load the message of a delivery job in the form in which it is sent."""

import asyncio

from mail.addresses import srs
from mail.compose.message_builder import without_bcc
from mail.envelope.delivery_jobs import DeliveryJob
from mail.outbound import relay_delivery
from mail.outbound.wire_format import WireMessage
from mail.queue import message_body
from mail.storage.message_content import read_all
from models.runtime.environment import Environment

INLINE_MAX_BYTES = 100_000  # larger messages are converted in a thread


async def load_wire_message(environment: Environment, job: DeliveryJob) -> WireMessage:
    """Load the message of a job as it is sent: without Bcc.

    An SRS sender that can't be sent is replaced by its short form. Large messages are streamed to
    SMTP servers.
    """
    sender = srs.sendable_sender(environment, job.sender, job.queue_id)
    stored_message = await message_body.open_message(environment, job)
    if stored_message.size < INLINE_MAX_BYTES:  # a thread would take longer than the work
        return _wire_message_without_bcc(job, sender, await read_all(stored_message.stream_raw()))
    if stored_message.size < message_body.STREAMING_MIN_BYTES or relay_delivery.is_webhook(job):
        return await asyncio.to_thread(
            _wire_message_without_bcc, job, sender, await read_all(stored_message.stream_raw())
        )
    message = await WireMessage.from_stream_without_bcc(sender, stored_message.stream_raw)
    if message.has_long_lines and job.user_id is not None:  # a stream can't be encoded again
        return await asyncio.to_thread(
            _wire_message_without_bcc, job, sender, await read_all(stored_message.stream_raw())
        )
    return message


def _wire_message_without_bcc(job: DeliveryJob, sender: str, raw_message: bytes) -> WireMessage:
    """The wire message. Only mail of users of this server is encoded again."""
    return WireMessage.from_bytes(
        sender, without_bcc(raw_message), reencode_long_lines=job.user_id is not None
    )

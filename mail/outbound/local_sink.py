"""The local sink of a demo server: a folder that receives all outgoing mail."""

import asyncio
import logging
import os
from pathlib import Path

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult
from mail.outbound.wire_format import WireMessage
from models.queue.tables import DeliveryState

log = logging.getLogger(__name__)

SINK_NAME = "local sink"  # instead of the name of an MX host
STORED_TEXT = "2.0.0 Stored in the local sink of this demo server, not sent"
FAILED_TEXT = "4.3.0 The local sink can't be written"


async def store_message(folder: Path, job: DeliveryJob, message: WireMessage) -> DeliveryResult:
    """Write a message into the folder as an .eml file, with its envelope in two header fields.

    A second attempt for the same recipients replaces the file.
    """
    path = folder / f"{job.queue_id}-{job.recipients[0].delivery_id}.eml"
    try:
        descriptor = await asyncio.to_thread(_open_private_file, path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_envelope_fields(job))
            async for piece in message.iter_pieces():
                await asyncio.to_thread(file.write, piece)
    except OSError:
        log.exception("Could not write the local sink", extra={"file": str(path)})
        return DeliveryResult(DeliveryState.DEFERRED, 451, FAILED_TEXT, SINK_NAME)
    return DeliveryResult(DeliveryState.RELAYED, 250, STORED_TEXT, SINK_NAME)


def _open_private_file(path: Path) -> int:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _envelope_fields(job: DeliveryJob) -> bytes:
    addresses = ", ".join(f"<{recipient.address}>" for recipient in job.recipients)
    return f"X-Envelope-From: <{job.sender}>\r\nX-Envelope-To: {addresses}\r\n".encode()

"""A parsed message with the values that are stored with it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from mail.spam.scan_result import ScanResult
from mail.storage.blobs.blob_writer import (
    StoredMessageBlobs,
    StoredPartBlobs,
)
from mail.storage.parsed_message import ParsedMessage


@dataclass(frozen=True, slots=True)
class StorableMessage(ParsedMessage):
    """A parsed message, ready to be stored for all its recipients."""

    authentication: dict[str, Any] | None = None  # results of SPF, DKIM, DMARC and ARC
    scan: ScanResult | None = None  # results of the scanners
    stored_blobs_by_tenant: dict[int, asyncio.Future[StoredMessageBlobs]] = field(
        default_factory=dict
    )  # by tenant
    # by tenant, shared by all messages that differ only in their first header fields
    part_blobs_by_tenant: dict[int, asyncio.Future[StoredPartBlobs]] = field(default_factory=dict)
    received_digest: str | None = None  # the digest before a change by the delivery
    is_generated: bool = False  # such a message is signed by the domain of its author

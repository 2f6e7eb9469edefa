"""The record of what the checks found when a message arrived.

If the message can't be delivered at once, the record is kept with its queue entry. The later
delivery then uses the same client, authentication results and scan result.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from mail.envelope.client import SmtpClientInfo
from mail.inbound.incoming_message import IncomingMessage
from mail.spam.scan_result import ScanResult, scan_result_from_record


@dataclass(frozen=True, slots=True)
class ArrivalRecord:
    """What is known of a received message besides its bytes and its envelope."""

    content_digest: str  # identifies a repeated delivery
    authentication: dict[str, Any] | None
    scan: ScanResult | None
    client: SmtpClientInfo | None
    from_trusted_server: bool
    skip_spam_filter: bool
    applies_bcc_rules: bool
    refusal_reply: str | None = None  # None: the delivery is retried, else it is only reported

    @classmethod
    def of_message(
        cls, incoming: IncomingMessage, refusal_reply: str | None = None
    ) -> "ArrivalRecord":
        """Return the record of a message that was scanned."""
        message = incoming.message
        return cls(
            incoming.content_digest,
            message.authentication,
            message.scan,
            incoming.client,
            incoming.from_trusted_server,
            incoming.skip_spam_filter,
            incoming.applies_bcc_rules,
            refusal_reply,
        )

    def to_json(self) -> str:
        """Return the record as a JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ArrivalRecord":
        """Return the record of a JSON text that `to_json` made."""
        values = json.loads(text)
        client, scan = values.pop("client"), values.pop("scan")
        return cls(
            **values,
            client=SmtpClientInfo(**client) if client else None,
            scan=scan_result_from_record(scan) if scan else None,
        )

    def apply_to(self, incoming: IncomingMessage) -> IncomingMessage:
        """Return the message with the results of the record. It is not scanned again."""
        return replace(
            incoming,
            message=replace(
                incoming.message,
                received_digest=self.content_digest,
                authentication=self.authentication,
                scan=self.scan,
            ),
            client=self.client,
            from_trusted_server=self.from_trusted_server,
            skip_spam_filter=self.skip_spam_filter,
            applies_bcc_rules=self.applies_bcc_rules,
            is_scanned=True,
        )

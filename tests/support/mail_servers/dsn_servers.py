"""An SMTP server that offers DSN (RFC 3461), and DSN messages as other servers write them."""

import re
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer

DSN_PARAMETER = re.compile(r" ((?:RET|ENVID|NOTIFY|ORCPT)=\S*)", re.IGNORECASE)


class _DsnSession(SMTP):
    """Records the DSN parameters, which aiosmtpd itself rejects."""

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        await super().smtp_MAIL(self.record_parameters("MAIL", arg))

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        await super().smtp_RCPT(self.record_parameters("RCPT", arg))

    def record_parameters(self, verb: str, arg: str | None) -> str:
        self.event_handler.dsn_parameters.append((verb, DSN_PARAMETER.findall(arg or "")))
        return DSN_PARAMETER.sub("", arg or "")


@dataclass
class DsnSmtpServer(FakeSmtpServer):
    """An SMTP server that offers DSN."""

    dsn_parameters: list[tuple[str, list[str]]] = field(default_factory=list)

    async def handle_EHLO(  # noqa: N802
        self, _server: Any, session: Any, _envelope: Envelope, hostname: str, ehlo_lines: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*ehlo_lines[:-1], "250-DSN", ehlo_lines[-1]]

    def make_session(self) -> SMTP:
        self.session_count += 1
        return _DsnSession(self, hostname="there", **self.smtp_options)

    def last_envelope_id(self) -> str:
        """The ENVID of the last transaction."""
        (envelope_id,) = [
            parameter.removeprefix("ENVID=")
            for verb, parameters in self.dsn_parameters[-3:]
            for parameter in parameters
            if verb == "MAIL" and parameter.startswith("ENVID=")
        ][-1:]
        return envelope_id


def delivery_status_part(
    *recipient_groups: str,
    reporting_mta: str = "dns; mx.example.net",
    envelope_id: str | None = None,
) -> str:
    """The part message/delivery-status (RFC 3464) with these recipient groups."""
    message_fields = [
        f"Reporting-MTA: {reporting_mta}",
        "Arrival-Date: Sun, 22 Nov 2026 03:00:00 +0000",
    ]
    if envelope_id:
        message_fields.insert(0, f"Original-Envelope-Id: {envelope_id}")
    return "\n\n".join(["\n".join(message_fields), *recipient_groups, ""])


def recipient_status_fields(
    address: str,
    action: str = "failed",
    code: str = "5.1.1",
    diagnostic: str = "smtp; 550 5.1.1 No such user",
    original_recipient: str | None = None,
) -> str:
    """The fields of one recipient in message/delivery-status (RFC 3464)."""
    original_fields = (
        [f"Original-Recipient: rfc822;{original_recipient}"] if original_recipient else []
    )
    recipient_fields = [
        f"Final-Recipient: rfc822; {address}",
        f"Action: {action}",
        f"Status: {code}",
    ]
    return "\n".join([*original_fields, *recipient_fields, f"Diagnostic-Code: {diagnostic}"])


def make_dsn_message(
    status_part: str,
    returned_header: str = "Message-ID: <1@example.org>",
    *,
    to: str = "ada@example.org",
    status_content_type: str = "message/delivery-status",
    returned_content_type: str = "text/rfc822-headers",
) -> bytes:
    """A DSN message as Postfix writes it."""
    text = f"""\
From: MAILER-DAEMON@mx.example.net (Mail Delivery System)
To: {to}
Subject: Undelivered Mail Returned to Sender
Date: Sun, 22 Nov 2026 03:00:01 +0000
Message-ID: <20261122030001.ABC@mx.example.net>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="ABC.1/mx.example.net"

This is a MIME-encapsulated message.

--ABC.1/mx.example.net
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

--ABC.1/mx.example.net
Content-Description: Delivery report
Content-Type: {status_content_type}

{status_part}
--ABC.1/mx.example.net
Content-Description: Undelivered Message Headers
Content-Type: {returned_content_type}

{returned_header}

--ABC.1/mx.example.net--
"""
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape")

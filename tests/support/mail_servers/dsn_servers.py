"""A neighbour that offers DSN, and reports as servers elsewhere write them."""

import re
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from tests.support.mail_servers.smtp_and_dns_servers import Server

ASKED = re.compile(r" ((?:RET|ENVID|NOTIFY|ORCPT)=\S*)", re.IGNORECASE)


class _Session(SMTP):
    """Notes what is asked of it; aiosmtpd itself does not know of it."""

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        await super().smtp_MAIL(self.noted("MAIL", arg))

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        await super().smtp_RCPT(self.noted("RCPT", arg))

    def noted(self, verb: str, arg: str | None) -> str:
        self.event_handler.asked.append((verb, ASKED.findall(arg or "")))
        return ASKED.sub("", arg or "")


@dataclass
class Reporter(Server):
    """A server that would report."""

    asked: list[tuple[str, list[str]]] = field(default_factory=list)

    async def handle_EHLO(  # noqa: N802
        self, _server: Any, session: Any, _envelope: Envelope, hostname: str, offers: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*offers[:-1], "250-DSN", offers[-1]]

    def session(self) -> SMTP:
        self.sessions += 1
        return _Session(self, hostname="there", **self.features)

    def envid(self) -> str:
        """The id of the last envelope."""
        (found,) = [
            word.removeprefix("ENVID=")
            for verb, words in self.asked[-3:]
            for word in words
            if verb == "MAIL" and word.startswith("ENVID=")
        ][-1:]
        return found


def status(*groups: str, by: str = "dns; mx.example.net", envid: str | None = None) -> str:
    """The part for programs."""
    about = [f"Reporting-MTA: {by}", "Arrival-Date: Sun, 22 Nov 2026 03:00:00 +0000"]
    if envid:
        about.insert(0, f"Original-Envelope-Id: {envid}")
    return "\n\n".join(["\n".join(about), *groups, ""])


def fate(
    address: str,
    action: str = "failed",
    code: str = "5.1.1",
    said: str = "smtp; 550 5.1.1 No such user",
    original: str | None = None,
) -> str:
    """What is said of a recipient."""
    first = [f"Original-Recipient: rfc822;{original}"] if original else []
    rest = [f"Final-Recipient: rfc822; {address}", f"Action: {action}", f"Status: {code}"]
    return "\n".join([*first, *rest, f"Diagnostic-Code: {said}"])


def report(
    told: str,
    returned: str = "Message-ID: <1@example.org>",
    *,
    to: str = "ada@example.org",
    kind: str = "message/delivery-status",
    back: str = "text/rfc822-headers",
) -> bytes:
    """A report as Postfix frames it."""
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
Content-Type: {kind}

{told}
--ABC.1/mx.example.net
Content-Description: Undelivered Message Headers
Content-Type: {back}

{returned}

--ABC.1/mx.example.net--
"""
    return text.replace("\n", "\r\n").encode("utf-8", "surrogateescape")

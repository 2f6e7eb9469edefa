"""An MX listener over real sockets, with a backend in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mail.delivery.failed_deliveries import failures_if_partly_accepted
from mail.delivery.listener_backend import SmtpArrival
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.tls.server_tls import CertificateFiles
from tests.conftest import ManualClock
from tests.support.mail_servers.empty_store_listeners import open_empty_store_listeners
from tests.support.mail_servers.lmtp_client import InMemoryBackend, SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp

OpenMxListener = Callable[..., Awaitable[MxListener]]


@dataclass
class RecordingBackend(InMemoryBackend):
    """A backend in memory that records arrivals, accepted recipients and failed addresses."""

    arrivals: list[SmtpArrival] = field(default_factory=list)
    deferred_addresses: list[str] = field(default_factory=list)
    refused_addresses: list[str] = field(default_factory=list)
    enqueue_error: Exception | None = None
    accept_count: int = 0

    async def accept_recipient(self, address: str, envelope_sender: str) -> AcceptedRecipient:
        self.accept_count += 1
        return await super().accept_recipient(address, envelope_sender)

    async def deliver(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival | None = None,
    ) -> Sequence[object]:
        assert arrival is not None
        self.arrivals.append(arrival)
        return await super().deliver(raw_message, accepted_recipients, envelope_sender, arrival)

    async def deliver_for_one_reply(
        self,
        raw_message: bytes | Path,
        accepted_recipients: Sequence[AcceptedRecipient],
        envelope_sender: str,
        arrival: SmtpArrival,
    ) -> Sequence[object]:
        outcomes = await self.deliver(raw_message, accepted_recipients, envelope_sender, arrival)
        failures = failures_if_partly_accepted(accepted_recipients, outcomes)
        if failures and self.enqueue_error:
            raise self.enqueue_error
        self.deferred_addresses += [failure.address for failure in failures if failure.is_retried]
        self.refused_addresses += [
            failure.address for failure in failures if not failure.is_retried
        ]
        return outcomes


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
async def open_listener(
    tmp_path: Path, backend: RecordingBackend, authority: CertificateAuthority, clock: ManualClock
) -> AsyncIterator[OpenMxListener]:
    """Return a function that starts a listener with these rules and limits."""
    async with open_empty_store_listeners(tmp_path) as listener_factory:

        async def start_listener(
            rules: MxRules | None = None, *, tls: bool = True, **options: Any
        ) -> MxListener:
            limit_values = {
                name: options.pop(name) for name in list(options) if hasattr(SessionLimits(), name)
            }
            config = SmtpListenerConfig(
                limits=replace(SessionLimits(), **limit_values),
                certificates=CertificateFiles(authority.issue_certificate()) if tls else None,
                **options,
            )
            environment = listener_factory.environment(now=clock)
            return await listener_factory.start_listener(
                MxListener(environment, tmp_path / "spool", config, rules, backend)
            )

        yield start_listener


@pytest.fixture
async def mx_listener(open_listener: OpenMxListener) -> MxListener:
    return await open_listener()


@pytest.fixture
async def client(mx_listener: MxListener) -> AsyncIterator[SmtpTestClient]:
    new_client = await connect_smtp(mx_listener.port)
    yield new_client
    await new_client.close()


async def send_message(client: SmtpTestClient, raw: bytes, *recipients: str, more: str = "") -> str:
    await client.start_data(*recipients, mail_parameters=more)
    client.send_bytes(raw + b".\r\n")
    return await client.read_reply()

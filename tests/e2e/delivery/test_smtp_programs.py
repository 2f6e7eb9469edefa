"""Tests of SMTP programs against the whole server."""

import asyncio
import smtplib
from collections.abc import Iterator
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path

import pytest

from bench.servers.ports import free_port
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.mail_servers.smtp_client import SERVER_NAME, CertificateAuthority
from tests.support.servers.merganser_server import PASSWORD, HttpClient, MerganserProcess
from tests.support.time_limits import HANG_SECONDS

SUBJECTS_QUERY = (
    "{ viewer { user { mailbox(by: {specialUse: INBOX}) { messages { nodes { subject } } } } } }"
)
LISTENER_NAMES = ("SMTP", "SUBMISSION", "SUBMISSION_TLS")


def create_smtp_server(
    folder: Path, *arguments: str
) -> tuple[MerganserProcess, CertificateAuthority, dict[str, int]]:
    """Create a server that listens on all SMTP ports, and the authority of its certificate."""
    authority, ports = CertificateAuthority(folder), {name: free_port() for name in LISTENER_NAMES}
    settings = {f"{name}_LISTEN": f"127.0.0.1:{port}" for name, port in ports.items()}
    settings["TLS_CERT"] = str(authority.issue_certificate())
    server = MerganserProcess(folder, extra_settings=settings, serve_arguments=arguments)
    server.create_users("ada", "bob")
    return server, authority, ports


def create_message(subject: str, sender: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "bob@example.org", subject
    message.set_content("Hello\n")
    return message


def send_by_smtp(port: int, authority: CertificateAuthority, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=HANG_SECONDS) as smtp:
        smtp._host = SERVER_NAME  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client_context())
        smtp.send_message(create_message(subject, "carol@example.net"))


def submit(ports: dict[str, int], authority: CertificateAuthority, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", ports["SUBMISSION"], timeout=HANG_SECONDS) as smtp:
        smtp._host = SERVER_NAME  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client_context())
        smtp.login("ada", PASSWORD)
        smtp.send_message(create_message(subject, "ada@example.org"))


async def inbox_subjects(client: HttpClient) -> list[str]:
    response = await client(SUBJECTS_QUERY)
    nodes = response["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    return sorted(node["subject"] for node in nodes)


async def wait_for_subjects(server: MerganserProcess, *expected: str) -> None:
    async with server.open_client("bob") as bob:

        async def all_arrived() -> bool:
            return await inbox_subjects(bob) == sorted(expected)

        await poll_until(all_arrived)


@pytest.fixture(params=[(), ("--workers", "2")])
def smtp_server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[MerganserProcess, CertificateAuthority, dict[str, int]]]:
    """A server that is killed after its test."""
    created = create_smtp_server(tmp_path, *request.param)
    yield created
    with suppress(AssertionError):  # the server has already ended
        created[0].kill()


async def test_messages_are_received_and_submitted_by_smtp_programs(
    smtp_server: tuple[MerganserProcess, CertificateAuthority, dict[str, int]],
) -> None:
    server, authority, ports = smtp_server
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(send_by_smtp, ports["SMTP"], authority, "From afar")
    await asyncio.to_thread(submit, ports, authority, "From here")
    await wait_for_subjects(server, "From afar", "From here")
    open_connection = smtplib.SMTP("127.0.0.1", ports["SMTP"], timeout=HANG_SECONDS)
    await asyncio.to_thread(server.stop)
    assert open_connection.getreply()[0] == 421
    open_connection.close()
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(send_by_smtp, ports["SMTP"], authority, "Again")
    await wait_for_subjects(server, "From afar", "From here", "Again")
    await asyncio.to_thread(server.stop)

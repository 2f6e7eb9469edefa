"""The whole server, and programs that speak SMTP to it."""

import asyncio
import smtplib
from collections.abc import Iterator
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path

import pytest

from bench.servers.ports import free_port
from tests.support.mail_servers.queue_worker import until
from tests.support.mail_servers.smtp_client import NAME, Authority
from tests.support.servers.merganser_server import PASSWORD, Client, Server

SUBJECTS = (
    "{ viewer { user { mailbox(by: {specialUse: INBOX}) { messages { nodes { subject } } } } } }"
)
NAMES = ("SMTP", "SUBMISSION", "SUBMISSIONS")


def served(folder: Path, *words: str) -> tuple[Server, Authority, dict[str, int]]:
    """A server that listens everywhere, and who signs its certificate."""
    authority, ports = Authority(folder), {name: free_port() for name in NAMES}
    more = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    more["TLS_CERT"] = str(authority.issue())
    server = Server(folder, more=more, words=words)
    server.make("ada", "bob")
    return server, authority, ports


def letter(subject: str, sender: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, "bob@example.org", subject
    made.set_content("Hello\n")
    return made


def come_in(port: int, authority: Authority, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as smtp:
        smtp._host = NAME  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client())
        smtp.send_message(letter(subject, "carol@example.net"))


def hand_in(ports: dict[str, int], authority: Authority, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", ports["SUBMISSION"], timeout=30) as smtp:
        smtp._host = NAME  # type: ignore[attr-defined]  # noqa: SLF001
        smtp.starttls(context=authority.client())
        smtp.login("ada", PASSWORD)
        smtp.send_message(letter(subject, "ada@example.org"))


async def subjects(client: Client) -> list[str]:
    answer = await client(SUBJECTS)
    nodes = answer["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    return sorted(node["subject"] for node in nodes)


async def arrived(server: Server, *wanted: str) -> None:
    async with server.client("bob") as bob:

        async def there() -> bool:
            return await subjects(bob) == sorted(wanted)

        await until(there)


@pytest.fixture(params=[(), ("--workers", "2")])
def house(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Server, Authority, dict[str, int]]]:
    """A server that does not outlive its test."""
    made = served(tmp_path, *request.param)
    yield made
    with suppress(AssertionError):  # it has ended
        made[0].kill()


async def test_mail_comes_in_and_is_handed_in(
    house: tuple[Server, Authority, dict[str, int]],
) -> None:
    server, authority, ports = house
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(come_in, ports["SMTP"], authority, "From afar")
    await asyncio.to_thread(hand_in, ports, authority, "From here")
    await arrived(server, "From afar", "From here")
    open_ = smtplib.SMTP("127.0.0.1", ports["SMTP"], timeout=30)
    await asyncio.to_thread(server.stop)
    assert open_.getreply()[0] == 421
    open_.close()
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(come_in, ports["SMTP"], authority, "Again")
    await arrived(server, "From afar", "From here", "Again")
    await asyncio.to_thread(server.stop)

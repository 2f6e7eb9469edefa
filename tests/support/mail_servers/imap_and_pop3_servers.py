"""Scripted IMAP and POP3 servers on loopback, for tests of connectors.

`faults` replaces replies by command. `<tag>` in a reply stands for the tag of the command,
`<usual>` for the usual reply.
"""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mail.connectors.imap_client import ImapSession
from mail.connectors.remote_server import ListedMailbox, RemoteFailure, RemoteMessage, RemoteServer
from mail.connectors.session_thread import ThreadedSession, connect_and_sign_in_session
from mail.network.outbound_http import NetworkPolicy
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.time_limits import HANG_SECONDS

REMOTE_PASSWORD = 'sesame "\\ opens'  # noqa: S105 - a test's
MAX_MESSAGE_SIZE = 100_000  # bytes
SILENCE_TIMEOUT = 60.0  # seconds until a silent server is given up
SHORT_SILENCE_TIMEOUT = 5.0  # seconds, for tests with a silent server
SILENCE_MESSAGE = "The server did not respond within 5 seconds."
MESSAGE = b"From: a@example.org\r\nSubject: One\r\n\r\nText\r\n"
CONTINUES, STAYS_SILENT, HANGS_UP = "continues", "stays silent", "hangs up"


@dataclass(frozen=True)
class RemoteFault:
    """A reply that replaces the usual one, and what the server does after it."""

    reply: bytes = b""
    next_step: str = CONTINUES
    repeats_forever: bool = False


SILENT_FAULT, HANG_UP_FAULT = RemoteFault(next_step=STAYS_SILENT), RemoteFault(next_step=HANGS_UP)
FaultsByCommand = dict[str, RemoteFault | bytes]


@dataclass
class FakeRemoteMessage:
    """A message on the remote server."""

    raw: bytes = MESSAGE
    flags: bytes = b""
    date: bytes = b'"17-Jul-2026 02:44:25 +0200"'
    size: bytes | None = None  # the size that the server reports, if it is wrong
    uidl: bytes | None = None


@dataclass
class FakeRemoteServer:
    """The parts that both servers share. Each connection is served until the client leaves."""

    messages: dict[int, FakeRemoteMessage] = field(default_factory=dict)
    faults: FaultsByCommand = field(default_factory=dict)
    received_lines: list[bytes] = field(default_factory=list)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0
    sessions: set[asyncio.Task[None]] = field(default_factory=set)

    protocol = ConnectorProtocol.IMAP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        async with self.asked:
            self.sessions.add(task)
            self.asked.notify_all()
        with suppress(OSError, asyncio.IncompleteReadError):
            if await self.send_reply("GREETING", b"", self.greeting(), reader, writer):
                while await self.handle_command(reader, writer):
                    pass
        writer.transport.abort()

    def greeting(self) -> bytes:
        """The greeting of the server."""
        raise NotImplementedError

    async def handle_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Read and answer one command. Returns false if the session ends."""
        raise NotImplementedError

    async def record_line(self, line: bytes) -> None:
        """Record a line and wake those who wait for it."""
        async with self.asked:
            self.received_lines.append(line)
            self.asked.notify_all()

    async def wait_until_connected(self) -> None:
        """Wait until a client has connected."""
        async with asyncio.timeout(HANG_SECONDS), self.asked:
            await self.asked.wait_for(lambda: bool(self.sessions))

    async def wait_for_command(self, text: bytes) -> None:
        """Wait until a received line contains this text."""
        async with asyncio.timeout(HANG_SECONDS), self.asked:
            await self.asked.wait_for(lambda: any(text in line for line in self.received_lines))

    async def send_reply(
        self,
        command: str,
        tag: bytes,
        usual_reply: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Send a reply or the fault of the command. Returns false if the session ends."""
        replacement = self.faults.get(command)
        fault = (
            replacement
            if isinstance(replacement, RemoteFault)
            else RemoteFault(usual_reply if replacement is None else replacement)
        )
        reply = fault.reply.replace(b"<tag>", tag).replace(b"<usual>", usual_reply)
        writer.write(reply)
        await writer.drain()
        while fault.repeats_forever:
            writer.write(reply)
            await writer.drain()
        if fault.next_step == STAYS_SILENT:
            while await reader.read(1 << 16):
                pass
        return fault.next_step == CONTINUES


@dataclass
class FakeImapServer(FakeRemoteServer):
    """An IMAP server with the same messages in all mailboxes."""

    list_lines: list[bytes] = field(default_factory=lambda: [b'(\\HasNoChildren) "/" INBOX'])
    capabilities: bytes = b"IMAP4rev1 UIDPLUS ENABLE CONDSTORE QRESYNC IDLE AUTH=PLAIN"
    uid_validity: int = 7

    def greeting(self) -> bytes:
        return b"* OK here\r\n"

    async def handle_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        line = await reader.readline()
        if not line:
            return False
        while literal := re.search(rb"\{(\d+)\}\r\n$", line):
            writer.write(b"+ more\r\n")
            line += await reader.readexactly(int(literal[1])) + await reader.readline()
        await self.record_line(line)
        tag, _, rest = line.rstrip(b"\r\n").partition(b" ")
        words = rest.split(b" ")
        name = b" ".join(words[: 1 + (words[0] == b"UID")]).decode("latin-1")
        handler: Callable[[bytes, list[bytes]], bytes] | None
        handler = getattr(self, "do_" + name.replace(" ", "_").lower(), None)
        reply = handler(rest, words) if handler else b""
        reply += b"" if b"<tag>" in reply else tag + b" OK done\r\n"
        if name == "IDLE":
            reply = b"+ idling\r\n"
        elif name == "AUTHENTICATE":
            writer.write(b"+ \r\n")
            await self.record_line(await reader.readline())
        continues = await self.send_reply(name, tag, reply, reader, writer)
        if name == "IDLE" and continues:
            await self.record_line(await reader.readline())
            return await self.send_reply("DONE", tag, tag + b" OK idled\r\n", reader, writer)
        if name == "STARTTLS" and continues:
            await writer.start_tls(server_tls_context())
        return continues

    def do_capability(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* CAPABILITY " + self.capabilities + b"\r\n"

    def do_logout(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* BYE bye\r\n"

    def do_list(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"".join(b"* LIST " + line + b"\r\n" for line in self.list_lines)

    def do_lsub(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"".join(b"* LSUB " + line + b"\r\n" for line in self.list_lines)

    def do_select(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] valid\r\n* OK [HIGHESTMODSEQ 99] high\r\n" % (
            len(self.messages),
            self.uid_validity,
        )

    do_examine = do_select

    def do_uid_search(self, rest: bytes, _words: list[bytes]) -> bytes:
        matches_all = b"DELETED" not in rest
        uids = [
            n
            for n, message in self.messages.items()
            if matches_all or b"\\Deleted" in message.flags
        ]
        return b"* SEARCH" + b"".join(b" %d" % uid for uid in uids) + b"\r\n"

    def do_uid_fetch(self, rest: bytes, words: list[bytes]) -> bytes:
        responses = b""
        for number, uid in enumerate(self.messages, 1):
            if not is_uid_in_set(uid, words[2]):
                continue
            message = self.messages[uid]
            items = [b"UID %d" % uid]
            if b"FLAGS" in rest:
                items.append(b"FLAGS (" + message.flags + b")")
            if b"RFC822.SIZE" in rest:
                items.append(b"RFC822.SIZE " + (message.size or b"%d" % len(message.raw)))
                items.append(b"INTERNALDATE " + message.date)
            if b"BODY" in rest:
                items.append(b"BODY[] {%d}\r\n" % len(message.raw) + message.raw)
            responses += b"* %d FETCH (" % number + b" ".join(items) + b")\r\n"
        return responses

    def do_uid_store(self, _rest: bytes, words: list[bytes]) -> bytes:
        for uid in self.messages:
            if is_uid_in_set(uid, words[2]):
                self.messages[uid].flags += b" \\Deleted"
        return b""

    def do_uid_expunge(self, _rest: bytes, words: list[bytes]) -> bytes:
        return self.expunge_messages(lambda uid: is_uid_in_set(uid, words[2]))

    def do_expunge(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return self.expunge_messages(lambda _: True)

    def expunge_messages(self, is_selected: Callable[[int], bool]) -> bytes:
        """Expunge the selected messages that have the flag Deleted."""
        expunged_uids = [
            uid
            for uid, message in self.messages.items()
            if b"\\Deleted" in message.flags and is_selected(uid)
        ]
        for uid in expunged_uids:
            del self.messages[uid]
        return b"".join(b"* VANISHED %d\r\n" % uid for uid in expunged_uids)


def is_uid_in_set(uid: int, uid_set: bytes) -> bool:
    """True if the UID is in the set (RFC 9051 sequence-set)."""
    for uid_range in uid_set.split(b","):
        low, _, high = uid_range.partition(b":")
        if int(low) <= uid <= (1 << 32 if high == b"*" else int(high or low)):
            return True
    return False


@dataclass
class FakePop3Server(FakeRemoteServer):
    """A POP3 server."""

    capabilities: bytes = b"TOP\r\nUIDL\r\nUSER\r\nSTLS\r\n"
    deleted_numbers: set[int] = field(default_factory=set)

    protocol = ConnectorProtocol.POP3

    def greeting(self) -> bytes:
        return b"+OK here\r\n"

    async def handle_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        line = await reader.readline()
        if not line:
            return False
        await self.record_line(line)
        name, _, rest = line.rstrip(b"\r\n").partition(b" ")
        command = name.decode("latin-1")
        if command == "AUTH":
            continues = await self.send_reply("AUTH", b"", b"+ \r\n", reader, writer)
            await self.record_line(await reader.readline())
            return continues and await self.send_reply("SASL", b"", b"+OK in\r\n", reader, writer)
        handler: Callable[[bytes], bytes] | None = getattr(self, f"do_{command.lower()}", None)
        continues = await self.send_reply(
            command, b"", handler(rest) if handler else b"+OK\r\n", reader, writer
        )
        if command == "STLS" and continues:
            await writer.start_tls(server_tls_context())
        return continues and command != "QUIT"

    def do_capa(self, _rest: bytes) -> bytes:
        return b"+OK\r\n" + self.capabilities + b".\r\n"

    def do_list(self, _rest: bytes) -> bytes:
        lines = (
            b"%d %s\r\n" % (number, message.size or b"%d" % len(message.raw))
            for number, message in self.messages.items()
        )
        return b"+OK\r\n" + b"".join(lines) + b".\r\n"

    def do_uidl(self, _rest: bytes) -> bytes:
        lines = (
            b"%d %s\r\n" % (number, message.uidl or b"uidl-%d" % number)
            for number, message in self.messages.items()
        )
        return b"+OK\r\n" + b"".join(lines) + b".\r\n"

    def do_retr(self, rest: bytes) -> bytes:
        raw = self.messages[int(rest)].raw
        stuffed = b"\r\n".join(
            b"." + line if line.startswith(b".") else line for line in raw.split(b"\r\n")
        )
        return b"+OK\r\n" + stuffed + (b"" if raw.endswith(b"\r\n") else b"\r\n") + b".\r\n"

    def do_dele(self, rest: bytes) -> bytes:
        self.deleted_numbers.add(int(rest))
        return b"+OK\r\n"

    def do_quit(self, _rest: bytes) -> bytes:
        for number in self.deleted_numbers:
            del self.messages[number]
        self.deleted_numbers.clear()
        return b"+OK\r\n"


@asynccontextmanager
async def run_remote_server(
    remote: FakeRemoteServer, *, tls: bool = False
) -> AsyncGenerator[FakeRemoteServer]:
    """Run the server on a free port. At the end no session and no connector thread is left."""
    listener = await asyncio.start_server(
        remote.serve, "127.0.0.1", 0, ssl=server_tls_context() if tls else None, limit=1 << 22
    )
    remote.port = listener.sockets[0].getsockname()[1]
    try:
        yield remote
    finally:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                await asyncio.gather(*remote.sessions)
                for thread in threading.enumerate():
                    if thread.name.startswith("connector"):
                        await asyncio.to_thread(thread.join)
        finally:
            listener.close()


async def _resolve_to_loopback(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


def remote_server_settings(remote: FakeRemoteServer, **changes: Any) -> RemoteServer:
    """The settings to connect to the server; by default without TLS."""
    settings = RemoteServer(
        remote.protocol,
        "127.0.0.1",
        remote.port,
        ConnectorSecurity.NONE,
        AuthMechanism.LOGIN,
        "anna",
        REMOTE_PASSWORD,
        SILENCE_TIMEOUT,
    )
    if "mechanism" in changes:
        changes["mechanism"] = AuthMechanism(changes["mechanism"])
    return replace(settings, **changes)


@asynccontextmanager
async def open_signed_in_session(
    remote: FakeRemoteServer,
    *,
    max_message_size: int = MAX_MESSAGE_SIZE,
    trusts_certificate: bool = True,
    **changes: Any,
) -> AsyncGenerator[ThreadedSession]:
    """Run the server and yield a signed-in session with it."""
    async with run_remote_server(remote, tls=changes.get("security") is ConnectorSecurity.TLS):
        network_policy = NetworkPolicy(allows_private=True, resolve=_resolve_to_loopback)
        tls_context = trusting_tls_context() if trusts_certificate else None
        async with (
            asyncio.timeout(HANG_SECONDS),
            connect_and_sign_in_session(
                remote_server_settings(remote, **changes),
                network_policy,
                max_message_size,
                tls_context,
            ) as session,
        ):
            yield session


INBOX = ListedMailbox(b"INBOX", ["INBOX"], None)
SessionJob = Callable[[ThreadedSession], Awaitable[Any]]


def make_remote_message(message_id: object, size: int = 10) -> RemoteMessage:
    """The listed metadata of a message."""
    return RemoteMessage(str(message_id), size, frozenset(), None)


def make_three_message_server(**options: Any) -> FakeImapServer:
    """Make an IMAP server with the messages 3, 5 and 8."""
    messages = {uid: FakeRemoteMessage(MESSAGE + b"%d\r\n" % uid) for uid in (3, 5, 8)}
    return FakeImapServer(messages, **options)


async def open_inbox(session: ThreadedSession, *, writable: bool = False) -> ImapSession:
    """Select the INBOX and return the IMAP session."""
    remote = session.remote
    assert isinstance(remote, ImapSession)
    await session.run_in_thread(lambda: remote.open_mailbox(INBOX, writable=writable))
    return remote


async def fetch_inbox_messages(session: ThreadedSession, *uids: int) -> dict[str, bytes]:
    """Fetch these messages of the INBOX."""
    await open_inbox(session)
    messages = [make_remote_message(uid) for uid in uids]
    return {
        message.message_id: raw
        async for batch in session.stream_messages(messages)
        for message, raw in batch
    }


async def run_every_command(session: ThreadedSession) -> None:
    """Run every command of a session."""
    remote = await open_inbox(session, writable=True)
    await session.run_in_thread(remote.list_mailboxes)
    await session.run_in_thread(remote.list_subscribed)
    await session.run_in_thread(remote.list_message_ids)
    await session.run_in_thread(remote.fetch_metadata, ["3", "5"])
    await session.run_in_thread(remote.fetch_changed_or_all_flags, 5)
    await session.run_in_thread(remote.wait_for_changes, 0.01)
    await session.run_in_thread(remote.delete_messages, ["3"])


async def catch_remote_failure(
    remote: FakeRemoteServer, job: SessionJob = run_every_command, **changes: Any
) -> RemoteFailure:
    """Run a job that fails and return the error, whose text is readable and has no password."""
    with pytest.raises(RemoteFailure) as error_info:
        async with open_signed_in_session(remote, **changes) as session:
            await job(session)
    text = error_info.value.message
    assert text
    assert text.isprintable()
    assert REMOTE_PASSWORD not in text
    assert not any(word in text for word in ("b'", 'b"', "Errno", "object", "Traceback"))
    return error_info.value

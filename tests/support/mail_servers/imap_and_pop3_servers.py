"""Accounts elsewhere on loopback: servers of IMAP and POP3 that do what they are told to do wrong.

What they answer to a command is replaced in `faults`, by the command: `<tag>` stands for its tag.
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
from mail.connectors.session_thread import ThreadedSession, open_session
from mail.network.outbound_http import NetworkPolicy
from models.connectors import ConnectorProtocol, ConnectorSecurity
from tests.support.mail_servers.smtp_and_dns_servers import server_tls, trust

SECRET = 'sesame "\\ opens'  # noqa: S105 - a test's
LARGEST = 100_000  # bytes of a message
PATIENCE = 8.0  # seconds of silence that are borne
SHORT = 0.5  # where there is nothing but silence
SOON = 20.0  # within which whatever is going to happen has happened
MESSAGE = b"From: a@example.org\r\nSubject: One\r\n\r\nText\r\n"
ON, SILENT, GONE = "goes on", "says no more", "hangs up"


@dataclass(frozen=True)
class Fault:
    """What is said instead, and what comes then; `ever` says it again and again."""

    say: bytes = b""
    then: str = ON
    ever: bool = False


SILENCE, HANG_UP = Fault(then=SILENT), Fault(then=GONE)
Faults = dict[str, Fault | bytes]


@dataclass
class Message:
    """A message elsewhere."""

    raw: bytes = MESSAGE
    flags: bytes = b""
    date: bytes = b'"17-Jul-2026 02:44:25 +0200"'
    size: bytes | None = None  # where that is a lie
    uidl: bytes | None = None


@dataclass
class Remote:
    """What both have: whoever connects is heard until they have gone."""

    messages: dict[int, Message] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)
    heard: list[bytes] = field(default_factory=list)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0
    sessions: set[asyncio.Task[None]] = field(default_factory=set)

    protocol = ConnectorProtocol.IMAP

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        async with self.asked:
            self.sessions.add(task)
            self.asked.notify_all()
        with suppress(OSError, asyncio.IncompleteReadError):
            if await self.answer("GREETING", b"", self.greeting(), reader, writer):
                while await self.one(reader, writer):
                    pass
        writer.transport.abort()

    def greeting(self) -> bytes:
        raise NotImplementedError

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raise NotImplementedError

    async def note(self, line: bytes) -> None:
        async with self.asked:
            self.heard.append(line)
            self.asked.notify_all()

    async def until_connected(self) -> None:
        async with asyncio.timeout(SOON), self.asked:
            await self.asked.wait_for(lambda: bool(self.sessions))

    async def until(self, word: bytes) -> None:
        """Wait until a command has come that has this in it."""
        async with asyncio.timeout(SOON), self.asked:
            await self.asked.wait_for(lambda: any(word in line for line in self.heard))

    async def answer(
        self,
        command: str,
        tag: bytes,
        usual: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Whether the session goes on after it."""
        given = self.faults.get(command)
        fault = given if isinstance(given, Fault) else Fault(usual if given is None else given)
        said = fault.say.replace(b"<tag>", tag).replace(b"<usual>", usual)
        writer.write(said)
        await writer.drain()
        while fault.ever:
            writer.write(said)
            await writer.drain()
        if fault.then == SILENT:
            while await reader.read(1 << 16):
                pass
        return fault.then == ON


@dataclass
class ImapRemote(Remote):
    """A server of IMAP, with one folder that is like any other."""

    folders: list[bytes] = field(default_factory=lambda: [b'(\\HasNoChildren) "/" INBOX'])
    capabilities: bytes = b"IMAP4rev1 UIDPLUS ENABLE CONDSTORE QRESYNC IDLE AUTH=PLAIN"
    validity: int = 7

    def greeting(self) -> bytes:
        return b"* OK here\r\n"

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line = await reader.readline()
        if not line:
            return False
        while literal := re.search(rb"\{(\d+)\}\r\n$", line):
            writer.write(b"+ more\r\n")
            line += await reader.readexactly(int(literal[1])) + await reader.readline()
        await self.note(line)
        tag, _, rest = line.rstrip(b"\r\n").partition(b" ")
        words = rest.split(b" ")
        name = b" ".join(words[: 1 + (words[0] == b"UID")]).decode("latin-1")
        does: Callable[[bytes, list[bytes]], bytes] | None
        does = getattr(self, "do_" + name.replace(" ", "_").lower(), None)
        told = does(rest, words) if does else b""
        told += b"" if b"<tag>" in told else tag + b" OK done\r\n"
        if name == "IDLE":
            told = b"+ idling\r\n"
        elif name == "AUTHENTICATE":
            writer.write(b"+ \r\n")
            await self.note(await reader.readline())
        goes_on = await self.answer(name, tag, told, reader, writer)
        if name == "IDLE" and goes_on:
            await self.note(await reader.readline())
            return await self.answer("DONE", tag, tag + b" OK idled\r\n", reader, writer)
        if name == "STARTTLS" and goes_on:
            await writer.start_tls(server_tls())
        return goes_on

    def do_capability(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* CAPABILITY " + self.capabilities + b"\r\n"

    def do_logout(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* BYE bye\r\n"

    def do_list(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"".join(b"* LIST " + line + b"\r\n" for line in self.folders)

    def do_lsub(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"".join(b"* LSUB " + line + b"\r\n" for line in self.folders)

    def do_select(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return b"* %d EXISTS\r\n* OK [UIDVALIDITY %d] valid\r\n* OK [HIGHESTMODSEQ 99] high\r\n" % (
            len(self.messages),
            self.validity,
        )

    do_examine = do_select

    def do_uid_search(self, rest: bytes, _words: list[bytes]) -> bytes:
        every = b"DELETED" not in rest
        found = [n for n, one in self.messages.items() if every or b"\\Deleted" in one.flags]
        return b"* SEARCH" + b"".join(b" %d" % uid for uid in found) + b"\r\n"

    def do_uid_fetch(self, rest: bytes, words: list[bytes]) -> bytes:
        told = b""
        for number, uid in enumerate(self.messages, 1):
            if not within(uid, words[2]):
                continue
            one = self.messages[uid]
            said = [b"UID %d" % uid]
            if b"FLAGS" in rest:
                said.append(b"FLAGS (" + one.flags + b")")
            if b"RFC822.SIZE" in rest:
                said.append(b"RFC822.SIZE " + (one.size or b"%d" % len(one.raw)))
                said.append(b"INTERNALDATE " + one.date)
            if b"BODY" in rest:
                said.append(b"BODY[] {%d}\r\n" % len(one.raw) + one.raw)
            told += b"* %d FETCH (" % number + b" ".join(said) + b")\r\n"
        return told

    def do_uid_store(self, _rest: bytes, words: list[bytes]) -> bytes:
        for uid in self.messages:
            if within(uid, words[2]):
                self.messages[uid].flags += b" \\Deleted"
        return b""

    def do_uid_expunge(self, _rest: bytes, words: list[bytes]) -> bytes:
        return self.expunged(lambda uid: within(uid, words[2]))

    def do_expunge(self, _rest: bytes, _words: list[bytes]) -> bytes:
        return self.expunged(lambda _: True)

    def expunged(self, meant: Callable[[int], bool]) -> bytes:
        gone = [
            uid for uid, one in self.messages.items() if b"\\Deleted" in one.flags and meant(uid)
        ]
        for uid in gone:
            del self.messages[uid]
        return b"".join(b"* VANISHED %d\r\n" % uid for uid in gone)


def within(uid: int, spans: bytes) -> bool:
    for span in spans.split(b","):
        low, _, high = span.partition(b":")
        if int(low) <= uid <= (1 << 32 if high == b"*" else int(high or low)):
            return True
    return False


@dataclass
class PopRemote(Remote):
    """A server of POP3."""

    capabilities: bytes = b"TOP\r\nUIDL\r\nUSER\r\nSTLS\r\n"
    marked: set[int] = field(default_factory=set)

    protocol = ConnectorProtocol.POP3

    def greeting(self) -> bytes:
        return b"+OK here\r\n"

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line = await reader.readline()
        if not line:
            return False
        await self.note(line)
        name, _, rest = line.rstrip(b"\r\n").partition(b" ")
        command = name.decode("latin-1")
        if command == "AUTH":
            goes_on = await self.answer("AUTH", b"", b"+ \r\n", reader, writer)
            await self.note(await reader.readline())
            return goes_on and await self.answer("SASL", b"", b"+OK in\r\n", reader, writer)
        does: Callable[[bytes], bytes] | None = getattr(self, f"do_{command.lower()}", None)
        goes_on = await self.answer(
            command, b"", does(rest) if does else b"+OK\r\n", reader, writer
        )
        if command == "STLS" and goes_on:
            await writer.start_tls(server_tls())
        return goes_on and command != "QUIT"

    def do_capa(self, _rest: bytes) -> bytes:
        return b"+OK\r\n" + self.capabilities + b".\r\n"

    def do_list(self, _rest: bytes) -> bytes:
        lines = (
            b"%d %s\r\n" % (number, one.size or b"%d" % len(one.raw))
            for number, one in self.messages.items()
        )
        return b"+OK\r\n" + b"".join(lines) + b".\r\n"

    def do_uidl(self, _rest: bytes) -> bytes:
        lines = (
            b"%d %s\r\n" % (number, one.uidl or b"uidl-%d" % number)
            for number, one in self.messages.items()
        )
        return b"+OK\r\n" + b"".join(lines) + b".\r\n"

    def do_retr(self, rest: bytes) -> bytes:
        raw = self.messages[int(rest)].raw
        stuffed = b"\r\n".join(
            b"." + line if line.startswith(b".") else line for line in raw.split(b"\r\n")
        )
        return b"+OK\r\n" + stuffed + (b"" if raw.endswith(b"\r\n") else b"\r\n") + b".\r\n"

    def do_dele(self, rest: bytes) -> bytes:
        self.marked.add(int(rest))
        return b"+OK\r\n"

    def do_quit(self, _rest: bytes) -> bytes:
        for number in self.marked:
            del self.messages[number]
        return b"+OK\r\n"


@asynccontextmanager
async def open_at(remote: Remote, *, tls: bool = False) -> AsyncGenerator[Remote]:
    """Listen on a free port. At the end everyone has gone, and no thread is left."""
    listener = await asyncio.start_server(
        remote.serve, "127.0.0.1", 0, ssl=server_tls() if tls else None, limit=1 << 22
    )
    remote.port = listener.sockets[0].getsockname()[1]
    try:
        yield remote
    finally:
        try:
            async with asyncio.timeout(SOON):
                await asyncio.gather(*remote.sessions)
                for thread in threading.enumerate():
                    if thread.name.startswith("connector"):
                        await asyncio.to_thread(thread.join)
        finally:
            listener.close()


async def _here(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


def account(remote: Remote, **more: Any) -> RemoteServer:
    """How it is reached: without TLS, where nothing else is said."""
    usual = RemoteServer(
        remote.protocol,
        "127.0.0.1",
        remote.port,
        ConnectorSecurity.PLAIN,
        "LOGIN",
        "anna",
        SECRET,
        PATIENCE,
    )
    return replace(usual, **more)


@asynccontextmanager
async def signed_in(
    remote: Remote, *, largest: int = LARGEST, ours: bool = True, **more: Any
) -> AsyncGenerator[ThreadedSession]:
    """A session, with a server that listens; without `ours` its certificate is not trusted."""
    async with open_at(remote, tls=more.get("security") is ConnectorSecurity.TLS):
        gate = NetworkPolicy(allows_private=True, resolve=_here)
        known = trust() if ours else None
        async with (
            asyncio.timeout(2 * SOON),
            open_session(account(remote, **more), gate, largest, known) as there,
        ):
            yield there


INBOX = ListedMailbox(b"INBOX", ["INBOX"], None)
Work = Callable[[ThreadedSession], Awaitable[Any]]


def head(mark: object, size: int = 10) -> RemoteMessage:
    return RemoteMessage(str(mark), size, frozenset(), None)


def three(**more: Any) -> ImapRemote:
    messages = {uid: Message(MESSAGE + b"%d\r\n" % uid) for uid in (3, 5, 8)}
    return ImapRemote(messages, **more)


async def opened(there: ThreadedSession, *, write: bool = False) -> ImapSession:
    remote = there.remote
    assert isinstance(remote, ImapSession)
    await there.run(lambda: remote.open_mailbox(INBOX, writable=write))
    return remote


async def got(there: ThreadedSession, *uids: int) -> dict[str, bytes]:
    """What these messages of the INBOX are."""
    await opened(there)
    heads = [head(uid) for uid in uids]
    return {one.message_id: raw async for some in there.stream_messages(heads) for one, raw in some}


async def everything(there: ThreadedSession) -> None:
    """Each command there is."""
    remote = await opened(there, write=True)
    await there.run(remote.list_mailboxes)
    await there.run(remote.list_subscribed)
    await there.run(remote.list_message_ids)
    await there.run(remote.fetch_metadata, ["3", "5"])
    await there.run(remote.fetch_changed_flags, 5)
    await there.run(remote.wait_for_changes, 0.01)
    await there.run(remote.delete_messages, ["3"])


async def failure(remote: Remote, work: Work = everything, **more: Any) -> RemoteFailure:
    """How it fails: in words for people, without the password."""
    with pytest.raises(RemoteFailure) as problem:
        async with signed_in(remote, **more) as there:
            await work(there)
    shown = problem.value.message
    assert shown
    assert shown.isprintable()
    assert SECRET not in shown
    assert not any(word in shown for word in ("b'", 'b"', "Errno", "object", "Traceback"))
    return problem.value

"""POP3 client of connectors; belongs into a thread (RFC 1939, 2449, 2595, 5034)."""

import hashlib
import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from mail.connectors.remote_server import (
    MAX_MESSAGES,
    SASL_MECHANISMS,
    ConnectorStage,
    ListedMailbox,
    OpenedMailbox,
    RemoteFailure,
    RemoteMessage,
    RequestRefused,
    printable_text,
)
from mail.connectors.sasl import MAX_CHALLENGES, response_function
from mail.connectors.socket_stream import (
    INVALID_RESPONSE_TEXT,
    NO_REASON_TEXT,
    BoundedReader,
    RemoteConnection,
)
from models.connectors import AuthMechanism, ConnectorSecurity

Result = TypeVar("Result")
INBOX = ListedMailbox(b"INBOX", ["INBOX"], None)
MAX_LINE_SIZE = 1 << 20  # bytes of a line
MAX_LIST_SIZE = 1 << 27  # bytes of a list of all messages
MAX_REFUSED_MESSAGES = 10  # refused messages after which the run fails
QUIT_TIMEOUT = 2.0  # seconds to wait for the response to QUIT
MAX_CAPABILITIES = 200  # lines of the response to CAPA
MAX_DIGITS = 18
# RFC 1939, without the colon, which is a separator elsewhere
UIDL_PATTERN = re.compile(r"[!-9;-~]{1,70}")
TEMPORARY_CODES = ("[IN-USE]", "[LOGIN-DELAY]", "[SYS/TEMP]")  # RFC 2449, 3206
PROTOCOL_ERRORS = (OSError, EOFError, ValueError, LookupError, AttributeError)


class _Pop3Protocol:
    """The commands of POP3. Raises RequestRefused for -ERR."""

    def __init__(self, connection: RemoteConnection, max_message_size: int) -> None:
        self.connection, self.max_message_size = connection, max_message_size
        self.sock = connection.connect()
        if connection.server.security is ConnectorSecurity.TLS:
            self.sock = connection.start_tls(self.sock)
        self.reader = BoundedReader(connection, self.sock)
        connection.stage = ConnectorStage.GREETING
        self._read_response()

    def _read_raw_line(self) -> bytes:
        return self.reader.read_line(MAX_LINE_SIZE)

    def _read_line(self) -> bytes:
        line = self._read_raw_line()
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    def _read_response(self) -> bytes:
        line = self._read_line()
        if line.startswith(b"-ERR"):
            raise RequestRefused(
                self.connection.stage,
                self.connection.printable_text_without_secrets(line[4:]) or NO_REASON_TEXT,
            )
        if not line.startswith(b"+"):
            raise RemoteFailure(self.connection.stage, INVALID_RESPONSE_TEXT)
        return line

    def command(self, command_line: str) -> bytes:
        """Send a command and return its one-line response."""
        if any(sign in command_line for sign in "\r\n\0"):
            raise RemoteFailure(
                self.connection.stage, "The username and password for POP3 must be on one line."
            )
        self.sock.sendall(f"{command_line}\r\n".encode())
        return self._read_response()

    def multi_line_command(self, command_line: str) -> list[bytes]:
        """Send a command and return the lines of its response."""
        self.command(command_line)
        lines, size = list[bytes](), 0
        while (line := self._read_line()) != b".":
            size += len(line)
            if size > MAX_LIST_SIZE or len(lines) >= MAX_MESSAGES:
                raise RemoteFailure(
                    self.connection.stage, f"The mailbox has more than {MAX_MESSAGES} messages."
                )
            lines.append(line[1:] if line.startswith(b"..") else line)
        return lines

    def start_tls(self) -> None:
        """Switch to TLS with STLS. Data that came unencrypted is discarded."""
        self.command("STLS")
        self.sock = self.connection.start_tls(self.sock)
        self.reader = BoundedReader(self.connection, self.sock)

    def authenticate_with_sasl(
        self, mechanism: str, response_to_challenge: Callable[[bytes], bytes]
    ) -> None:
        """Sign in with SASL and one response; later challenges get an empty response."""
        line, challenge_count = self.command(f"AUTH {mechanism}"), 0
        while not line.startswith(b"+OK"):
            challenge_count += 1
            if challenge_count > MAX_CHALLENGES:
                raise RemoteFailure(
                    self.connection.stage, "The server sent too many authentication challenges."
                )
            reply = response_to_challenge(b64decode(line[2:])) if challenge_count == 1 else b""
            self.connection.hide_secret(reply.decode())
            line = self.command(packed := b64encode(reply).decode())
            self.connection.hide_secret(packed)

    def retrieve_message_within_limit(self, message_number: int) -> bytes | None:
        """Retrieve a message; None if it exceeds the size limit.

        It ends at a dot alone on a line with CRLF, not on a line with another ending.
        """
        self.command(f"RETR {message_number}")
        content, size, is_first_line = bytearray(), 0, True
        while (line := self._read_raw_line()) != b".\r\n" or not is_first_line:
            if is_first_line and line.startswith(b".."):
                line = line[1:]
            is_first_line = line.endswith(b"\r\n")
            size += len(line)
            if size > 2 * self.max_message_size + MAX_LINE_SIZE:
                raise RemoteFailure(ConnectorStage.FETCH, "The end of a message is missing.")
            if size <= self.max_message_size:
                content += line
        return bytes(content) if size <= self.max_message_size else None


class Pop3Session:
    """A POP3 session, which has one mailbox. Each method blocks, and raises RemoteFailure."""

    def __init__(self, connection: RemoteConnection, max_message_size: int) -> None:
        self.connection, self.max_message_size = connection, max_message_size
        self.capabilities: frozenset[str] = frozenset()
        self._protocol_or_none: _Pop3Protocol | None = None
        self._numbers: dict[str, int] = {}  # message numbers by message id
        self._sizes: dict[int, int] = {}
        self._has_deletions = False

    @property
    def _protocol(self) -> _Pop3Protocol:
        if self._protocol_or_none is None:
            raise RemoteFailure(self.connection.stage, "The connection is closed.")
        return self._protocol_or_none

    def connect_and_sign_in(self) -> None:
        """Connect, with TLS if it is configured, and sign in."""
        self._protocol_or_none = self._run_and_convert_failure_at_stage(
            ConnectorStage.CONNECT, lambda: _Pop3Protocol(self.connection, self.max_message_size)
        )
        if self.connection.server.security is ConnectorSecurity.STARTTLS:
            self._run_and_convert_failure_at_stage(ConnectorStage.TLS, self._protocol.start_tls)
        with suppress(RequestRefused):  # old servers have no CAPA
            capabilities = self._run_and_convert_failure_at_stage(
                ConnectorStage.GREETING, lambda: self._protocol.multi_line_command("CAPA")
            )
            self.capabilities = frozenset(
                printable_text(line).upper() for line in capabilities[:MAX_CAPABILITIES]
            )
        self._run_and_convert_failure_at_stage(ConnectorStage.LOGIN, self._authenticate)

    def _authenticate(self) -> None:
        wire, server = self._protocol, self.connection.server
        try:
            if server.mechanism in SASL_MECHANISMS:
                wire.authenticate_with_sasl(
                    server.mechanism.sasl_name, response_function(server, server.mechanism)
                )
            elif server.mechanism is AuthMechanism.PLAIN and self._requires_sasl():
                wire.authenticate_with_sasl("PLAIN", response_function(server, AuthMechanism.PLAIN))
            else:
                wire.command(f"USER {server.username}")
                wire.command(f"PASS {server.secret}")
        except RequestRefused as problem:
            for_good = not problem.message.upper().startswith(TEMPORARY_CODES)
            raise RemoteFailure(
                ConnectorStage.LOGIN, problem.message, is_permanent=for_good
            ) from None

    def _requires_sasl(self) -> bool:
        """True if the server accepts the password only by SASL."""
        offered = {word for line in self.capabilities if line.startswith("SASL ")
                   for word in line.split()}  # fmt: skip
        return "PLAIN" in offered and "USER" not in self.capabilities

    def log_out(self) -> None:
        """Send QUIT.

        The server deletes messages only then, so its failure is raised after deletions.
        """
        if self._protocol_or_none is None:
            return
        if self._has_deletions:
            self._run_and_convert_failure_at_stage(
                ConnectorStage.DELETE, lambda: self._protocol.command("QUIT")
            )
            return
        with suppress(*PROTOCOL_ERRORS, RemoteFailure):
            self._protocol_or_none.sock.settimeout(QUIT_TIMEOUT)
            self._protocol_or_none.command("QUIT")

    def close(self) -> None:
        """Close the connection in any state."""
        self.connection.close()

    def list_mailboxes(self) -> list[ListedMailbox]:
        """The only mailbox, INBOX."""
        return [INBOX]

    def list_subscribed(self) -> frozenset[bytes]:
        """The raw name of the only mailbox."""
        return frozenset({INBOX.raw_name})

    def open_mailbox(self, mailbox: ListedMailbox, *, writable: bool) -> OpenedMailbox:
        """Read the list of messages."""
        del mailbox, writable
        self._sizes = {}
        for line in self._run_and_convert_failure_at_stage(
            ConnectorStage.LIST, lambda: self._protocol.multi_line_command("LIST")
        ):
            number, size = (_parse_number(word) for word in [*line.split(), b"", b""][:2])
            if not number or size is None:
                raise RemoteFailure(
                    ConnectorStage.LIST, "The message list of the server can't be parsed."
                )
            self._sizes[number] = size
        return OpenedMailbox(0, 0, len(self._sizes))

    def list_message_ids(self) -> list[str]:
        """The ids of all messages from UIDL, in order."""
        try:
            lines = self._run_and_convert_failure_at_stage(
                ConnectorStage.LIST, lambda: self._protocol.multi_line_command("UIDL")
            )
        except RequestRefused as problem:
            text = f"The server does not support UIDL: {problem.message}"
            raise RemoteFailure(ConnectorStage.LIST, text) from None
        self._numbers = {}
        copies_by_uidl = Counter[bytes]()
        for line in lines:
            number, _, unique_id = line.partition(b" ")
            if not (message_number := _parse_number(number)) or not unique_id.strip():
                raise RemoteFailure(
                    ConnectorStage.LIST, "The server sent an empty UIDL of a message."
                )
            message_id = self._distinct_message_id(unique_id.strip(), copies_by_uidl)
            self._numbers[message_id] = message_number
        if len(self._numbers) < len(self._sizes):
            raise RemoteFailure(
                ConnectorStage.LIST, "The server did not send the UIDL of every message."
            )
        return list(self._numbers)

    def _distinct_message_id(self, uidl: bytes, copies_by_uidl: Counter[bytes]) -> str:
        """A unique id for a message: some servers give several messages one UIDL.

        `copies_by_uidl` counts the ids that were tried for a UIDL, so that none is tried twice.
        """
        copies_by_uidl[uidl] += 1
        unique_id = _message_id(uidl)
        if copies_by_uidl[uidl] > 1:
            unique_id = _digest(b"%d %s" % (copies_by_uidl[uidl], uidl))
        while unique_id in self._numbers:
            copies_by_uidl[uidl] += 1
            unique_id = _digest(b"%d %s" % (copies_by_uidl[uidl], uidl))
        return unique_id

    def fetch_metadata(self, message_ids: Sequence[str]) -> list[RemoteMessage]:
        """The sizes of messages; POP3 has neither flags nor dates."""
        known_messages = [
            (message_id, self._numbers[message_id])
            for message_id in message_ids
            if message_id in self._numbers
        ]
        return [
            RemoteMessage(message_id, self._sizes.get(number, 0), frozenset(), None)
            for message_id, number in known_messages
        ]

    def fetch_messages(
        self, messages: Sequence[RemoteMessage]
    ) -> Iterator[tuple[RemoteMessage, bytes]]:
        """Yield the messages with their content.

        Refused messages, and those over the size limit, are omitted.
        """
        denied = 0
        for message in messages:
            if (number := self._numbers.get(message.message_id)) is None:
                continue
            try:
                raw = self._run_and_convert_failure_at_stage(
                    ConnectorStage.FETCH,
                    partial(self._protocol.retrieve_message_within_limit, number),
                )
            except RequestRefused:  # one unreadable message must not stop the others
                denied += 1
                if denied > MAX_REFUSED_MESSAGES:
                    raise
                continue
            if raw is not None:
                yield message, raw

    def delete_messages(self, message_ids: Sequence[str]) -> None:
        """Mark messages as deleted; the server deletes them at the end of the session."""
        for message_id in message_ids:
            if (number := self._numbers.get(message_id)) is not None:
                self._has_deletions = True
                self._run_and_convert_failure_at_stage(
                    ConnectorStage.DELETE, partial(self._protocol.command, f"DELE {number}")
                )

    def _run_and_convert_failure_at_stage(
        self, stage: ConnectorStage, function: Callable[[], Result]
    ) -> Result:
        self.connection.stage = stage
        try:
            return function()
        except (*PROTOCOL_ERRORS, RemoteFailure) as problem:
            raise self.connection.failure_from(problem) from None


def _parse_number(word: bytes) -> int | None:
    return int(word) if word.isdigit() and len(word) <= MAX_DIGITS else None


def _message_id(uidl: bytes) -> str:
    """The id of a message: a UIDL that RFC 1939 allows, else its digest."""
    text = uidl.decode("latin-1")
    return text if UIDL_PATTERN.fullmatch(text) else _digest(uidl)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

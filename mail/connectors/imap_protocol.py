"""IMAP protocol on top of imaplib, with limits on the size of every response."""

import imaplib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from socket import socket
from typing import Any

from imapclient.datetime_util import parse_to_datetime
from imapclient.exceptions import IMAPClientError
from imapclient.response_parser import parse_response

from mail.connectors.remote_server import (
    ConnectorStage,
    RemoteFailure,
    RequestRefused,
    printable_text,
)
from mail.connectors.sasl import MAX_CHALLENGES
from mail.connectors.socket_stream import (
    CLOSED_TEXT,
    NO_REASON_TEXT,
    BoundedReader,
    RemoteConnection,
)
from models.connectors import ConnectorSecurity

MAX_LITERAL_SIZE = 1 << 16  # bytes of a literal that is no message
MAX_LINE_SIZE = 1 << 20  # bytes of a line
MAX_UNREQUESTED_BYTES = 4 << 20  # bytes of unrequested data in one response
MAX_CAPABILITIES = 200
TEMPORARY_CODES = (
    "[UNAVAILABLE]",
    "[INUSE]",
    "[LIMIT]",
    "[SERVERBUG]",
    "[CONTACTADMIN]",
)  # RFC 5530
CHANGE_RESPONSES = frozenset({"EXISTS", "EXPUNGE", "VANISHED"})
PROTOCOL_ERRORS = (OSError, EOFError, imaplib.IMAP4.error, IMAPClientError, ValueError, TypeError,
          LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)  # fmt: skip

ResponseParts = list[Any]  # of an untagged response: bytes, and pairs of bytes and a literal


class ImapProtocol(imaplib.IMAP4):
    """An IMAP session of imaplib that yields responses as they arrive.

    Raises RequestRefused for NO.
    """

    sock: socket
    # attributes of imaplib that its type stubs omit
    state: str
    literal: Any
    untagged_responses: dict[str, ResponseParts]
    tagged_commands: dict[bytes, Any]
    continuation_response: Any
    is_readonly: bool
    _command: Callable[..., bytes]
    _get_response: Callable[[], bytes | None]
    _new_tag: Callable[[], bytes]

    def __init__(self, connection: RemoteConnection, max_message_size: int) -> None:
        self.connection, self.max_message_size = connection, max_message_size  # bytes of a message
        self.max_line_size = MAX_LINE_SIZE
        self.expects_messages = False  # true if a literal can be a message
        self.was_skipped = False  # true if a literal was too large
        self.has_expunged = False  # true if messages of the open mailbox were deleted
        self.uid_validity = 0
        self._bytes_left = MAX_UNREQUESTED_BYTES
        try:
            super().__init__(connection.server.host, connection.server.port)
        except imaplib.IMAP4.error:
            self._note_expunge_and_raise_on_bye_or_uidvalidity()  # raises for BYE
            raise

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        """Connect, with TLS if it is configured. imaplib calls this."""
        del timeout
        self.host, self.port = host, port
        response = self.connection.connect()
        if self.connection.server.security is ConnectorSecurity.TLS:
            response = self.connection.start_tls(response)
        self.connection.stage = ConnectorStage.GREETING
        self.sock, self.reader = response, BoundedReader(self.connection, response)

    def read(self, size: int) -> bytes:
        """Read a literal. A message that is somewhat too large is skipped.

        Raises RemoteFailure if the literal is larger than that.
        """
        most = self.max_message_size if self.expects_messages else MAX_LITERAL_SIZE
        if self.expects_messages and most < size <= 2 * most:
            self.was_skipped = True
            self._count_against_byte_limit(MAX_LITERAL_SIZE)
            self.reader.skip(size)
            return b""
        if size > most:
            text = f"The server sent a literal of {size} bytes that was not requested."
            raise RemoteFailure(self.connection.stage, text)
        self._count_against_byte_limit(size)
        return self.reader.read_exactly(size)

    def readline(self) -> bytes:
        """Read a line. Raises RemoteFailure if it is too long."""
        line = self.reader.read_line(self.max_line_size)
        self._count_against_byte_limit(len(line))
        return line

    def _get_line(self) -> bytes:
        line = self.readline()
        if not line.endswith(b"\r\n"):
            raise RemoteFailure(
                self.connection.stage, "A line of the response does not end with CRLF."
            )
        if line.startswith(b"*") or line.count(b" ") != 1:
            return line[:-2]
        return line[:-2] + b" "  # imaplib requires text after OK, which some servers omit

    def send(self, data: Any) -> None:
        """Send bytes. Raises RemoteFailure."""
        try:
            self.sock.sendall(data)
        except OSError as problem:
            raise self.connection.failure_from(problem) from None

    def shutdown(self) -> None:
        """Do nothing: the connection closes its socket."""

    def _check_bye(self) -> None:
        self._note_expunge_and_raise_on_bye_or_uidvalidity()

    def _log(self, line: str) -> None:
        """Log nothing: requests can contain secrets, responses can be long."""

    def command(self, command_name: str, *arguments: bytes) -> dict[str, ResponseParts]:
        """Send a command and return all untagged responses by kind. Raises RequestRefused."""
        for _ in self.stream_responses("", command_name, *arguments):
            pass  # no response has an empty kind
        return self.untagged_responses

    def stream_responses(
        self, kind: str, command_name: str, *arguments: bytes
    ) -> Iterator[ResponseParts]:
        """Send a command and yield its untagged responses of a kind.

        With "" all are collected instead.
        """
        self._reset_responses()
        tag = self._command(command_name, *arguments)
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
            if kind:
                responses = self.untagged_responses.pop(kind, None)
                self.untagged_responses.clear()
                if responses is not None:
                    yield responses
        self._require_ok(tag)

    def _reset_responses(self) -> None:
        self.untagged_responses.clear()
        self.reset_byte_limit()

    def reset_byte_limit(self) -> None:
        """Reset the byte limit, since the received data was requested."""
        self._bytes_left = (
            MAX_UNREQUESTED_BYTES
            + self.max_line_size
            + (self.max_message_size if self.expects_messages else 0)
        )

    def _require_ok(self, tag: bytes) -> None:
        result = self.tagged_commands.pop(tag)
        if result is None or result[0] != "OK":
            words = self.connection.printable_text_without_secrets(result[1][0]) if result else ""
            raise RequestRefused(self.connection.stage, words or NO_REASON_TEXT)

    def _note_expunge_and_raise_on_bye_or_uidvalidity(self) -> None:
        """Handle responses that can come at any time.

        Raises RemoteFailure for BYE or a new UIDVALIDITY.
        """
        responses = self.untagged_responses
        if (last := responses.get("BYE")) is not None:
            words = (
                self.connection.printable_text_without_secrets(last[-1])
                if isinstance(last[-1], bytes)
                else ""
            )
            raise RemoteFailure(
                self.connection.stage, f"{CLOSED_TEXT} {words}" if words else CLOSED_TEXT
            )
        self.has_expunged = self.has_expunged or "EXPUNGE" in responses or "VANISHED" in responses
        uid_validity = responses.get("UIDVALIDITY")
        if (
            self.uid_validity
            and uid_validity
            and uid_validity[-1] != str(self.uid_validity).encode()
        ):
            raise RemoteFailure(
                self.connection.stage, "UIDVALIDITY of the mailbox changed during the run."
            )

    def extend_byte_limit(self, byte_count: int) -> None:
        """Allow more bytes in this response, since a requested item has arrived."""
        self._bytes_left += byte_count

    def _count_against_byte_limit(self, byte_count: int) -> None:
        self._bytes_left -= byte_count
        if self._bytes_left < 0:
            raise RemoteFailure(self.connection.stage, "The server sent more data than requested.")

    def fetch_capabilities(self, *, use_announced: bool = False) -> frozenset[str]:
        """The capabilities of the server.

        With `use_announced`, those of the last response are used if it has them.
        """
        capabilities = self.untagged_responses.get("CAPABILITY") if use_announced else None
        capabilities = capabilities or self.command("CAPABILITY").get("CAPABILITY", [])
        words = b" ".join(
            capability for capability in capabilities if isinstance(capability, bytes)
        )
        return frozenset(printable_text(word).upper() for word in words.split()[:MAX_CAPABILITIES])

    def start_tls(self) -> None:
        """Switch to TLS. Responses that came unencrypted are discarded."""
        self.command("STARTTLS")
        self.sock = self.connection.start_tls(self.sock)
        self.reader = BoundedReader(self.connection, self.sock)
        self.untagged_responses.clear()

    def log_in(self, username: str, password: str) -> None:
        """Sign in with LOGIN. Raises RemoteFailure."""
        self._reset_responses()
        tag = self._new_tag()
        self.send(tag + b" LOGIN")
        if self._send_argument_unless_refused(
            tag, username.encode()
        ) and self._send_argument_unless_refused(tag, password.encode()):
            self.send(b"\r\n")
        self._wait_for_sign_in_ok(tag)

    def _send_argument_unless_refused(self, tag: bytes, argument: bytes) -> bool:
        """Send an argument quoted or as a literal; false if the server has refused the literal."""
        if (quoted_argument := quoted_string_or_none(argument)) is not None:
            self.send(b" " + quoted_argument)
            return True
        self.send(b" {%d}\r\n" % len(argument))
        while self._get_response() is not None:
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
            if self.tagged_commands[tag] is not None:
                return False
        self.send(argument)
        return True

    def authenticate_with_sasl(
        self, mechanism: str, response_to_challenge: Callable[[bytes], bytes]
    ) -> None:
        """Sign in with SASL and one response; later challenges get an empty response.

        Raises RemoteFailure.
        """
        self._reset_responses()
        tag = self._new_tag()
        self.send(tag + b" AUTHENTICATE " + mechanism.encode() + b"\r\n")
        challenge_count = 0
        while self.tagged_commands[tag] is None:
            if self._get_response() is not None:
                self._note_expunge_and_raise_on_bye_or_uidvalidity()
                continue
            challenge_count += 1
            if challenge_count > MAX_CHALLENGES:
                raise RemoteFailure(
                    self.connection.stage, "The server sent too many authentication challenges."
                )
            reply = (
                response_to_challenge(b64decode(self.continuation_response or b""))
                if challenge_count == 1
                else b""
            )
            self.connection.hide_secret(reply.decode())
            self.send(b64encode(reply) + b"\r\n")
        self._wait_for_sign_in_ok(tag)

    def _wait_for_sign_in_ok(self, tag: bytes) -> None:
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
        try:
            self._require_ok(tag)
        except RequestRefused as problem:
            for_good = not problem.message.upper().startswith(TEMPORARY_CODES)
            raise RemoteFailure(
                self.connection.stage, problem.message, is_permanent=for_good
            ) from None
        self.state = "AUTH"

    def send_select_or_examine(
        self, raw_name: bytes, *, writable: bool
    ) -> dict[str, ResponseParts]:
        """Open a mailbox with SELECT or EXAMINE and return the responses by kind."""
        self.uid_validity, self.has_expunged, self.is_readonly = 0, False, True
        quoted_name = quoted_string_or_none(raw_name)
        self.literal = raw_name if quoted_name is None else None
        response = self.command(
            "SELECT" if writable else "EXAMINE", *([] if quoted_name is None else [quoted_name])
        )
        self.state = "SELECTED"
        return response

    def idle_for_response_kinds(self, timeout: float) -> set[str]:
        """Wait with IDLE for a response, and return the kinds of the responses."""
        self._reset_responses()
        tag = self._new_tag()
        self.send(tag + b" IDLE\r\n")
        while self._get_response() is not None:
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
            if self.tagged_commands[tag] is not None:
                self._require_ok(tag)
                raise RemoteFailure(self.connection.stage, "The server ended IDLE unexpectedly.")
        if (
            not self.untagged_responses.keys() & CHANGE_RESPONSES
            and self.reader.wait_for_line_within(timeout)
        ):
            self._get_response()
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
        self.send(b"DONE\r\n")
        while self.tagged_commands[tag] is None:
            self._get_response()
            self._note_expunge_and_raise_on_bye_or_uidvalidity()
        self._require_ok(tag)
        return set(self.untagged_responses)


def quoted_string_or_none(text: bytes) -> bytes | None:
    """The text as an IMAP quoted string; None if it needs a literal."""
    if not text.isascii() or any(sign in text for sign in b"\r\n\0"):
        return None
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def parse_fetch_response_or_none(
    response_parts: ResponseParts,
) -> tuple[int, dict[bytes, Any]] | None:
    """The UID and the items of a FETCH response; None if it has no UID, as an unsolicited one."""
    response: Any = parse_response(response_parts)
    if len(response) != 2 or not isinstance(response[1], tuple) or len(response[1]) % 2:  # noqa: PLR2004
        raise ValueError(response)
    names, values = response[1][::2], response[1][1::2]
    items = {bytes(name).upper(): value for name, value in zip(names, values, strict=True)}
    uid = items.get(b"UID")
    return (uid, items) if isinstance(uid, int) else None


def parse_internal_date_or_none(value: Any) -> datetime | None:
    """The time of an INTERNALDATE; None if it is invalid."""
    try:
        date: datetime = parse_to_datetime(value, normalise=False)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError, AttributeError):
        return None

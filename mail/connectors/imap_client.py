"""IMAP client of connectors; belongs into a thread (RFC 3501, 4315, 6154, 7162, 2177)."""

import re
from base64 import b64decode
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from imapclient.response_parser import parse_response

from mail.connectors.imap_protocol import (
    CHANGE_RESPONSES,
    MAX_LINE_SIZE,
    PROTOCOL_ERRORS,
    ImapProtocol,
    ResponseParts,
    parse_fetch_response_or_none,
    parse_internal_date_or_none,
)
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
from mail.connectors.sasl import response_function
from mail.connectors.socket_stream import RemoteConnection
from models.connectors import AuthMechanism, ConnectorSecurity

Result = TypeVar("Result")
MAX_MAILBOXES = 10_000  # of an account, at most
METADATA_BATCH_SIZE = 1_000  # messages of one request for metadata
MAX_FETCHED_MESSAGES = 200  # messages of one FETCH
MAX_FETCHED_BYTES = 4 << 20  # bytes of one FETCH, unless a single message has more
MAX_SEARCH_LINE = 1 << 24  # bytes of the SEARCH response with all UIDs
MAX_ITEM_BYTES = 4096  # bytes of the metadata of a message or mailbox, on average
MAX_NAME_BYTES = 1000  # bytes of a mailbox name: indexes of PostgreSQL refuse longer ones
MAX_REFUSED_MESSAGES = 10  # refused messages after which the run fails
TOO_MANY = f"The mailbox has more than {MAX_MESSAGES} messages."
MAX_FLAGS = 100  # of a message
LOGOUT_TIMEOUT = 2.0  # seconds to wait for the response to LOGOUT
SPECIAL_USES = ("\\all", "\\archive", "\\drafts", "\\flagged", "\\junk", "\\sent", "\\trash")
UNSELECTABLE_FLAGS = frozenset({b"\\noselect", b"\\nonexistent"})
KNOWN_LIST_FLAGS = UNSELECTABLE_FLAGS | {use.encode() for use in SPECIAL_USES}
IDLE_SECONDS = 25 * 60.0  # seconds: servers end an IDLE after 29 minutes (RFC 2177)
UID_LIMIT = 1 << 32
MODSEQ_LIMIT = 1 << 63
# no blanks, at which flags are split, and no parentheses
FLAG_PATTERN = re.compile(r"\\?[!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]{1,100}")
UTF7_SHIFT = re.compile(rb"&([A-Za-z0-9+,]*)-|(&)")


@dataclass(frozen=True, slots=True)
class _ListResponse:
    """A LIST or LSUB response: one mailbox."""

    flags: frozenset[bytes]  # in lower case
    delimiter: Any
    raw_name: bytes


@dataclass(slots=True)
class _MessageItems:
    """The metadata of a message, from one or more FETCH responses."""

    flags: frozenset[str] | None = None  # None: no response has them
    size: int = 0
    received_at: datetime | None = None

    def update(self, response: Mapping[bytes, Any]) -> None:
        """Take the items of a response. Only these are kept, since a server can send others."""
        if b"FLAGS" in response:
            self.flags = _parse_flags(response[b"FLAGS"])
        if isinstance(size := response.get(b"RFC822.SIZE"), int):
            self.size = size
        if b"INTERNALDATE" in response:
            self.received_at = parse_internal_date_or_none(response[b"INTERNALDATE"])


class ImapSession:
    """An IMAP session with a remote server. Each method blocks, and raises RemoteFailure."""

    def __init__(self, connection: RemoteConnection, max_message_size: int) -> None:
        self.connection = connection
        self.max_message_size = max_message_size  # bytes of a message
        self.capabilities: frozenset[str] = frozenset()
        self._protocol_or_none: ImapProtocol | None = None
        self._message_count = 0

    @property
    def _protocol(self) -> ImapProtocol:
        if self._protocol_or_none is None:
            raise RemoteFailure(self.connection.stage, "The connection is closed.")
        return self._protocol_or_none

    def connect_and_sign_in(self) -> None:
        """Connect, with TLS if it is configured, and sign in."""
        self._protocol_or_none = self._run_and_convert_failure_at_stage(
            ConnectorStage.CONNECT, lambda: ImapProtocol(self.connection, self.max_message_size)
        )
        if self._protocol.state == "AUTH":
            raise RemoteFailure(
                ConnectorStage.GREETING,
                "The server accepts unauthenticated sessions (PREAUTH), which is not secure.",
            )
        if self.connection.server.security is ConnectorSecurity.STARTTLS:
            if "STARTTLS" not in self._protocol.capabilities:
                raise RemoteFailure(ConnectorStage.TLS, "The server does not support STARTTLS.")
            self._run_and_convert_failure_at_stage(ConnectorStage.TLS, self._protocol.start_tls)
        self.capabilities = self._run_and_convert_failure_at_stage(
            ConnectorStage.LOGIN, self._protocol.fetch_capabilities
        )
        self._run_and_convert_failure_at_stage(ConnectorStage.LOGIN, self._authenticate)
        self.capabilities = self._run_and_convert_failure_at_stage(
            ConnectorStage.LOGIN, lambda: self._protocol.fetch_capabilities(use_announced=True)
        )
        extensions = [
            extension for extension in ("CONDSTORE", "QRESYNC") if extension in self.capabilities
        ]
        if extensions and "ENABLE" in self.capabilities:
            with suppress(RequestRefused):  # the server offers more than it accepts
                names = " ".join(extensions).encode()
                self._run_and_convert_failure_at_stage(
                    ConnectorStage.LOGIN, lambda: self._protocol.command("ENABLE", names)
                )

    def _authenticate(self) -> None:
        wire, server = self._protocol, self.connection.server
        if server.mechanism in SASL_MECHANISMS:
            wire.authenticate_with_sasl(
                server.mechanism.sasl_name, response_function(server, server.mechanism)
            )
        elif server.mechanism is AuthMechanism.PLAIN and "AUTH=PLAIN" in self.capabilities:
            wire.authenticate_with_sasl("PLAIN", response_function(server, AuthMechanism.PLAIN))
        elif "LOGINDISABLED" in self.capabilities:
            raise RemoteFailure(
                ConnectorStage.LOGIN,
                "The server offers no supported authentication mechanism for this connection.",
            )
        else:
            wire.log_in(server.username, server.secret)

    def log_out(self) -> None:
        """Send LOGOUT and wait for the response for at most LOGOUT_TIMEOUT."""
        if self._protocol_or_none is not None:
            with suppress(*PROTOCOL_ERRORS, RemoteFailure):
                self._protocol_or_none.sock.settimeout(LOGOUT_TIMEOUT)
                self._protocol_or_none.logout()

    def close(self) -> None:
        """Close the connection in any state."""
        self.connection.close()

    def list_mailboxes(self) -> list[ListedMailbox]:
        """List the mailboxes that can be opened, in the order of the server.

        Mailboxes whose name is very long or has NUL, which is not allowed, are omitted.
        """
        mailboxes: dict[bytes, ListedMailbox] = {}
        for listed in self._send_list_or_lsub_and_parse_responses("LIST"):
            raw = listed.raw_name
            is_valid_name = 0 < len(raw) <= MAX_NAME_BYTES and b"\0" not in raw
            if listed.flags & UNSELECTABLE_FLAGS or not is_valid_name:
                continue
            use = next((use for use in SPECIAL_USES if use.encode() in listed.flags), None)
            mailboxes.setdefault(
                raw, ListedMailbox(raw, mailbox_levels(raw, listed.delimiter), use)
            )
        return list(mailboxes.values())

    def list_subscribed(self) -> frozenset[bytes]:
        """List the raw names of the subscribed mailboxes; they need not exist."""
        return frozenset(
            listed.raw_name for listed in self._send_list_or_lsub_and_parse_responses("LSUB")
        )

    def _send_list_or_lsub_and_parse_responses(self, command: str) -> list[_ListResponse]:
        """Send LIST or LSUB for all mailboxes."""

        def collect_list_responses() -> list[_ListResponse]:
            responses = list[_ListResponse]()
            for parts in self._protocol.stream_responses(command, command, b'""', b'"*"'):
                response: Any = parse_response([part for part in parts if part != b""])
                flags, delimiter, name = response
                # the parser takes some names for values: NIL for None, digits for an integer
                text = "NIL" if name is None else str(name)
                raw = name if isinstance(name, bytes) else text.encode()
                flag_names = frozenset(flag.lower() for flag in flags if isinstance(flag, bytes))
                responses.append(_ListResponse(flag_names & KNOWN_LIST_FLAGS, delimiter, raw))
                self._protocol.extend_byte_limit(MAX_ITEM_BYTES)
                if len(responses) > MAX_MAILBOXES:
                    raise RemoteFailure(
                        ConnectorStage.LIST, f"The account has more than {MAX_MAILBOXES} mailboxes."
                    )
            return responses

        return self._run_and_convert_failure_at_stage(ConnectorStage.LIST, collect_list_responses)

    def open_mailbox(self, mailbox: ListedMailbox, *, writable: bool) -> OpenedMailbox:
        """Open a mailbox for reading, or for changes too."""
        answer = self._run_and_convert_failure_at_stage(
            ConnectorStage.FETCH,
            lambda: self._protocol.send_select_or_examine(mailbox.raw_name, writable=writable),
        )
        if writable and "READ-ONLY" in answer:
            raise RemoteFailure(
                ConnectorStage.FETCH, "The mailbox is read-only: messages can't be deleted."
            )
        validity = _last_number(answer.get("UIDVALIDITY"), UID_LIMIT)
        if not validity:
            raise RemoteFailure(ConnectorStage.FETCH, "The server sent no UIDVALIDITY.")
        exists = _last_number(answer.get("EXISTS"), UID_LIMIT)
        if exists is None:
            raise RemoteFailure(ConnectorStage.FETCH, "The server sent no message count.")
        self._protocol.uid_validity, self._message_count = validity, exists
        return OpenedMailbox(
            validity, _last_number(answer.get("HIGHESTMODSEQ"), MODSEQ_LIMIT) or 0, exists
        )

    def list_message_ids(self) -> list[str]:
        """The UIDs of the open mailbox, in ascending order."""
        uids = self._search_uids(b"ALL")
        if not uids and self._message_count and not self._protocol.has_expunged:
            # a connector that mirrors deletions would delete all of them
            raise RemoteFailure(
                ConnectorStage.FETCH,
                f"The server sent no UIDs of its {self._message_count} messages.",
            )
        return [str(uid) for uid in sorted(uids)]

    def _search_uids(self, criteria: bytes) -> set[int]:
        def collect_uids() -> set[int]:
            uids: set[int] = set()
            self._protocol.max_line_size = MAX_SEARCH_LINE
            try:
                for parts in self._protocol.stream_responses("SEARCH", "UID", b"SEARCH", criteria):
                    text = b" ".join(parts).partition(b"(")[0]
                    numbers = text.split(maxsplit=MAX_MESSAGES)
                    if len(uids) + len(numbers) > MAX_MESSAGES:
                        raise RemoteFailure(ConnectorStage.FETCH, TOO_MANY)
                    uids.update(_parse_uids(numbers))
            finally:
                self._protocol.max_line_size = MAX_LINE_SIZE
            return uids

        return self._run_and_convert_failure_at_stage(ConnectorStage.FETCH, collect_uids)

    def fetch_metadata(self, message_ids: Sequence[str]) -> list[RemoteMessage]:
        """Fetch size, flags and date of messages by UID; deleted messages are omitted."""
        messages: list[RemoteMessage] = []
        for batch in _batches_of_ids(message_ids, METADATA_BATCH_SIZE):
            items_by_uid = self._fetch_items(batch, b"(UID FLAGS INTERNALDATE RFC822.SIZE)")
            for message_id in batch:
                if items := items_by_uid.get(int(message_id)):
                    flags = items.flags or frozenset[str]()
                    messages.append(RemoteMessage(message_id, items.size, flags, items.received_at))
        return messages

    def fetch_messages(
        self, messages: Sequence[RemoteMessage]
    ) -> Iterator[tuple[RemoteMessage, bytes]]:
        """Yield the messages with their content, as they arrive.

        Deleted messages, and those over the size limit, are omitted.
        """
        denied = 0
        for message_batch in _batches_within_fetch_limits(messages):
            left = yield from self._fetch_batch_and_return_refused(message_batch)
            for message in left:  # one unreadable message must not stop the others
                denied += len((yield from self._fetch_batch_and_return_refused([message])))
                if denied > MAX_REFUSED_MESSAGES:
                    raise RemoteFailure(
                        ConnectorStage.FETCH, "The server sent none of the requested messages."
                    )

    def _fetch_batch_and_return_refused(
        self, batch: Sequence[RemoteMessage]
    ) -> Generator[tuple[RemoteMessage, bytes], None, list[RemoteMessage]]:
        """Fetch the messages of one batch; return those that the server has refused."""
        messages_by_uid = {int(message.message_id): message for message in batch}
        responses = self._stream_fetch(
            uid_set(messages_by_uid).encode(), b"(UID BODY.PEEK[])", messages=True
        )
        try:
            while content := self._run_and_convert_failure_at_stage(
                ConnectorStage.FETCH, lambda: next(responses, None)
            ):
                raw = content[1].get(b"BODY[]")
                if isinstance(raw, bytes) and (head := messages_by_uid.pop(content[0], None)):
                    self._protocol.reset_byte_limit()
                    yield head, raw
        except RequestRefused:
            return list(messages_by_uid.values())
        return []

    def fetch_changed_or_all_flags(self, since_modseq: int) -> dict[str, frozenset[str]]:
        """Fetch the flags of messages that were changed since a MODSEQ, by UID.

        Fetches the flags of all messages if the server refuses CHANGEDSINCE.
        """
        try:
            items_by_uid = self._fetch_items(
                (), b"(UID FLAGS)", b"(CHANGEDSINCE %d)" % since_modseq
            )
        except RequestRefused:
            items_by_uid = self._fetch_items((), b"(UID FLAGS)")
        return {
            str(uid): items.flags for uid, items in items_by_uid.items() if items.flags is not None
        }

    def fetch_flags(self, message_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """Fetch the flags of messages by UID."""
        flags_by_id: dict[str, frozenset[str]] = {}
        for id_batch in _batches_of_ids(message_ids, METADATA_BATCH_SIZE):
            items_by_uid = self._fetch_items(id_batch, b"(UID FLAGS)")
            for message_id in id_batch:
                items = items_by_uid.get(int(message_id))
                if items is not None and items.flags is not None:
                    flags_by_id[message_id] = items.flags
        return flags_by_id

    def _fetch_items(
        self, message_ids_or_all: Sequence[str], *items: bytes
    ) -> dict[int, _MessageItems]:
        """Fetch items of these messages, or of all if the list is empty, by UID."""
        requested_uids = {int(message_id) for message_id in message_ids_or_all}
        ids = uid_set(requested_uids).encode() if requested_uids else b"1:*"

        def collect_items() -> dict[int, _MessageItems]:
            items_by_uid: dict[int, _MessageItems] = {}
            for uid, response in self._stream_fetch(ids, *items):
                if requested_uids and uid not in requested_uids:
                    continue
                if uid not in items_by_uid:
                    self._protocol.extend_byte_limit(MAX_ITEM_BYTES)
                items_by_uid.setdefault(uid, _MessageItems()).update(response)
                if len(items_by_uid) > MAX_MESSAGES:
                    raise RemoteFailure(ConnectorStage.FETCH, TOO_MANY)
            return items_by_uid

        return self._run_and_convert_failure_at_stage(ConnectorStage.FETCH, collect_items)

    def _stream_fetch(
        self, uid_set: bytes, *items: bytes, messages: bool = False
    ) -> Iterator[tuple[int, dict[bytes, Any]]]:
        """Yield the UID and the items of each message, as they arrive."""
        wire = self._protocol
        wire.expects_messages = messages
        try:
            for parts in wire.stream_responses("FETCH", "UID", b"FETCH", uid_set, *items):
                if wire.was_skipped:
                    wire.was_skipped = False
                elif (response := parse_fetch_response_or_none(parts)) is not None:
                    yield response
        finally:
            wire.expects_messages = False

    def delete_messages(self, message_ids: Sequence[str]) -> None:
        """Delete messages of the open mailbox.

        Messages that other clients have marked as deleted stay.
        """
        for id_batch in _batches_of_ids(message_ids, METADATA_BATCH_SIZE):
            ids = uid_set(int(message_id) for message_id in id_batch).encode()
            self._send_delete_command("UID", b"STORE", ids, b"+FLAGS.SILENT", b"(\\Deleted)")
            if "UIDPLUS" in self.capabilities:
                self._send_delete_command("UID", b"EXPUNGE", ids)
                continue
            marked = {str(uid) for uid in self._search_uids(b"DELETED")}
            if marked and marked <= set(id_batch):
                self._send_delete_command("EXPUNGE")

    def _send_delete_command(self, command: str, *arguments: bytes) -> None:
        self._run_and_convert_failure_at_stage(
            ConnectorStage.DELETE, lambda: self._protocol.command(command, *arguments)
        )

    def wait_for_changes(self, timeout: float) -> bool:
        """Wait with IDLE until messages of the open mailbox arrive or go.

        Returns false after the timeout. Raises RemoteFailure if the server offers no
        IDLE.
        """
        if "IDLE" not in self.capabilities:
            raise RemoteFailure(ConnectorStage.IDLE, "The server does not support IDLE.")
        kinds = self._run_and_convert_failure_at_stage(
            ConnectorStage.IDLE,
            lambda: self._protocol.idle_for_response_kinds(min(timeout, IDLE_SECONDS)),
        )
        return bool(kinds & CHANGE_RESPONSES)

    def _run_and_convert_failure_at_stage(
        self, stage: ConnectorStage, function: Callable[[], Result]
    ) -> Result:
        self.connection.stage = stage
        try:
            return function()
        except (*PROTOCOL_ERRORS, RemoteFailure) as problem:
            raise self.connection.failure_from(problem) from None


def mailbox_levels(raw_name: bytes, delimiter: Any) -> list[str]:
    """The name of a mailbox, split into decoded levels."""
    sign = delimiter if isinstance(delimiter, bytes) and delimiter else None
    return [
        _decode_level(level) for level in (raw_name.split(sign) if sign else [raw_name]) if level
    ]


def _decode_level(raw_level: bytes) -> str:
    """Decode a level of a name: modified UTF-7 (RFC 3501, section 5.1.3), UTF-8 or Latin-1."""
    try:
        if not raw_level.isascii():
            return raw_level.decode()
        level = UTF7_SHIFT.sub(_decode_utf7_shift_or_raise, raw_level).decode()
        if "\0" not in level:  # no column accepts NUL
            return level
        return raw_level.decode()
    except ValueError:
        return raw_level.decode("latin-1")


def _decode_utf7_shift_or_raise(match: re.Match[bytes]) -> bytes:
    if match[2]:
        raise ValueError(match[2])
    if not match[1]:
        return b"&"
    packed = match[1].replace(b",", b"/")
    return b64decode(packed + b"=" * (-len(packed) % 4)).decode("utf-16-be").encode()


def _last_number(response_parts: ResponseParts | None, limit: int) -> int | None:
    """The last value of a response as a number; None if it is no number below the limit."""
    said_last = response_parts[-1] if response_parts else None
    if not isinstance(said_last, bytes) or not said_last.isdigit() or len(said_last) > 19:  # noqa: PLR2004
        return None
    return last_number if (last_number := int(said_last)) < limit else None


def _parse_uids(numbers: Iterable[bytes]) -> Iterator[int]:
    for number in numbers:
        if not number.isdigit() or len(number) > 10:  # noqa: PLR2004
            raise ValueError(number)
        if 0 < int(number) < UID_LIMIT:
            yield int(number)


def _parse_flags(flags: Any) -> frozenset[str]:
    """The valid flags of a response; system flags in the spelling of RFC 3501."""
    parsed_flags: set[str] = set()
    for flag in flags if isinstance(flags, tuple) else ():
        text = printable_text(flag) if isinstance(flag, bytes | int) else ""
        if FLAG_PATTERN.fullmatch(text) and len(parsed_flags) < MAX_FLAGS:
            parsed_flags.add("\\" + text[1:].capitalize() if text.startswith("\\") else text)
    return frozenset(parsed_flags)


def _batches_of_ids(message_ids: Sequence[str], batch_size: int) -> Iterable[Sequence[str]]:
    return (message_ids[at : at + batch_size] for at in range(0, len(message_ids), batch_size))


def _batches_within_fetch_limits(
    messages: Sequence[RemoteMessage],
) -> Iterator[list[RemoteMessage]]:
    """Yield batches of messages for one FETCH each."""
    batch: list[RemoteMessage] = []
    weight = 0
    for message in messages:
        if batch and (
            len(batch) == MAX_FETCHED_MESSAGES or weight + message.size > MAX_FETCHED_BYTES
        ):
            yield batch
            batch, weight = [], 0
        batch.append(message)
        weight += message.size
    if batch:
        yield batch


def uid_set(uids: Iterable[int]) -> str:
    """The UIDs as an IMAP sequence set: `1:3,5`."""
    uid_ranges: list[list[int]] = []
    for uid in sorted(uids):
        if uid_ranges and uid_ranges[-1][1] == uid - 1:
            uid_ranges[-1][1] = uid
        else:
            uid_ranges.append([uid, uid])
    return ",".join(str(a) if a == b else f"{a}:{b}" for a, b in uid_ranges)

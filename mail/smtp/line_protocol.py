"""The bytes that a client of SMTP or LMTP sends: command lines and message data."""

import asyncio
import re
from dataclasses import dataclass, field

import idna

from mail.addresses.address_syntax import ascii_domain
from mail.addresses.quoted_local_part import has_valid_quotes, remove_needless_quotes
from mail.envelope import dsn_parameters
from mail.envelope.dsn_parameters import DsnRequest, InvalidDsnParameter
from mail.envelope.smtp_replies import (
    BAD_BODY_REPLY,
    BAD_PARAMETER_REPLY,
    BAD_RECIPIENT_REPLY,
    BAD_SENDER_REPLY,
    BAD_SIZE_REPLY,
    BAD_SMTPUTF8_REPLY,
    BARE_LF_REPLY,
    MAIL_SYNTAX_REPLY,
    MALFORMED_REPLY,
    RCPT_SYNTAX_REPLY,
    SMTPUTF8_REQUIRED_REPLY,
    bad_parameter_reply,
    duplicate_parameter_reply,
    unsupported_option_reply,
)
from mail.network.byte_stream import PIECE_SIZE, ConnectionClosed, ReadBytes
from mail.recipients.recipient_routes import AcceptedRecipient, RejectedRecipient

MAX_COMMAND_LINE = 2048  # bytes of a command line with its CRLF

SYNTAX_REPLIES = {"FROM:": MAIL_SYNTAX_REPLY, "TO:": RCPT_SYNTAX_REPLY}
BAD_PATH_REPLIES = {"FROM:": BAD_SENDER_REPLY, "TO:": BAD_RECIPIENT_REPLY}

# A source route before the address is ignored (RFC 5321, section 4.1.1.3)
PATH_PATTERN = re.compile(r'<(?:@[^:<>"]*:)?((?:"(?:[^"\\]|\\.)*"|[^"<>\s])*)>(?:\s+(.*))?')
PARAMETER_PATTERN = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=(\S+))?")
SIZE_PATTERN = re.compile(r"[0-9]{1,20}")
CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class CommandRejected(Exception):
    """A command is refused because of a protocol error. The text is the SMTP reply."""


class BareLineFeed(CommandRejected):
    """A command line ends with LF alone. Other servers can read the next line as part of it."""

    def __init__(self) -> None:
        super().__init__(BARE_LF_REPLY)


class CommandLineTooLong(Exception):
    """A command line was too long and is discarded."""


class CommandReader:
    """A reader of lines and pieces with a buffer of received bytes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._read: ReadBytes = reader.read
        self._buffer = bytearray()

    def read_from(self, read_bytes: ReadBytes) -> None:
        """Read from another source from now on."""
        self._read = read_bytes

    def take_buffered(self) -> bytes:
        """Return the buffered bytes and empty the buffer."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def read_line(self) -> bytes:
        """Return the next line without its CRLF.

        Raises CommandLineTooLong, BareLineFeed or ConnectionClosed.
        """
        dropped = False
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_COMMAND_LINE:
                self._buffer.clear()
                dropped = True
            self._buffer += await self.read_piece(from_buffer=False)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if dropped or end >= MAX_COMMAND_LINE:
            raise CommandLineTooLong
        if not line.endswith(b"\r"):
            raise BareLineFeed
        return line[:-1]

    async def read_exactly(self, size: int) -> bytes:
        """Return exactly this number of bytes. Raises ConnectionClosed."""
        while len(self._buffer) < size:
            self._buffer += await self.read_piece(from_buffer=False)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def read_piece(self, *, from_buffer: bool = True) -> bytes:
        """Return up to PIECE_SIZE bytes as soon as there are any.

        Raises ConnectionClosed at the end of the stream. Buffered bytes are returned first. With
        `from_buffer` False they stay in the buffer, and the bytes after them are read from the
        connection.
        """
        if from_buffer and self._buffer:
            chunk = bytes(self._buffer[:PIECE_SIZE])
            del self._buffer[:PIECE_SIZE]
            return chunk
        try:
            chunk = await self._read(PIECE_SIZE)
        except ConnectionError:
            raise ConnectionClosed from None
        if not chunk:
            raise ConnectionClosed
        return chunk

    @property
    def has_buffered_line(self) -> bool:
        """True if a further line is already buffered (RFC 2920)."""
        return b"\n" in self._buffer

    def push_back(self, rest: bytes) -> None:
        """Put bytes back that belong to the next command."""
        self._buffer[:0] = rest


@dataclass(slots=True)
class SmtpTransaction:
    """An SMTP transaction: the parameters of MAIL and the recipients."""

    envelope_sender: str  # empty for the null path
    declared_size: int  # SIZE parameter; 0 if missing
    smtputf8: bool
    content_digest: str = ""  # SHA-256 of the message, hex, once it has come
    accepted_recipients: list[AcceptedRecipient] = field(default_factory=list)
    # at most as many as the delivery trace lists
    rejected_recipients: list[RejectedRecipient] = field(default_factory=list)
    dsn_request: DsnRequest = dsn_parameters.DEFAULT_REPORTS  # parameters of MAIL


def parse_verb_and_argument(line: bytes) -> tuple[str, str]:
    """Return the verb in capitals and the argument. Raises CommandRejected."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise CommandRejected(MALFORMED_REPLY) from None
    verb, _, argument = text.partition(" ")
    if CONTROL_PATTERN.search(text) or not verb:
        raise CommandRejected(MALFORMED_REPLY)
    return verb.upper(), argument.strip()


def parse_address_and_parameters(keyword: str, argument: str) -> tuple[str, dict[str, str]]:
    """Return the address in angle brackets and the parameters after it. Raises CommandRejected.

    `keyword` is FROM: or TO:. The address has quotes only if its local part needs them.
    """
    if not argument.upper().startswith(keyword):
        raise CommandRejected(SYNTAX_REPLIES[keyword])
    match = PATH_PATTERN.fullmatch(argument[len(keyword) :].strip())
    if not match or not _can_be_sent_to(match[1]):
        raise CommandRejected(BAD_PATH_REPLIES[keyword])
    parameters = {}
    for word in (match[2] or "").split():
        parameter = PARAMETER_PATTERN.fullmatch(word)
        if not parameter:
            raise CommandRejected(BAD_PARAMETER_REPLY)
        name = parameter[1].upper()
        if name in parameters:
            raise CommandRejected(duplicate_parameter_reply(name))
        parameters[name] = parameter[2] or ""
    return remove_needless_quotes(match[1]), parameters


def _can_be_sent_to(address: str) -> bool:
    """True if the address has valid quotes and a domain that can be written in ASCII.

    A report to another address could not be sent.
    """
    try:
        ascii_domain(address.rpartition("@")[2])
    except idna.IDNAError:
        return False
    return has_valid_quotes(address)


def pop_parameters_into_transaction(
    envelope_sender: str, parameters: dict[str, str]
) -> SmtpTransaction:
    """Return the transaction that MAIL begins. Raises CommandRejected for bad parameters."""
    utf8 = parameters.pop("SMTPUTF8", None)
    body = parameters.pop("BODY", "7BIT").upper()
    size = parameters.pop("SIZE", "0")
    try:
        dsn_request = dsn_parameters.pop_mail_parameters(parameters)
    except InvalidDsnParameter as wrong:
        raise CommandRejected(bad_parameter_reply(str(wrong))) from None
    _require_no_other_parameters(parameters)
    if utf8:
        raise CommandRejected(BAD_SMTPUTF8_REPLY)
    if body not in {"7BIT", "8BITMIME"}:
        raise CommandRejected(BAD_BODY_REPLY)
    if not SIZE_PATTERN.fullmatch(size):
        raise CommandRejected(BAD_SIZE_REPLY)
    require_smtputf8_for_address(envelope_sender, smtputf8=utf8 is not None)
    return SmtpTransaction(envelope_sender, int(size), utf8 is not None, dsn_request=dsn_request)


def pop_recipient_dsn_request(
    transaction: SmtpTransaction, parameters: dict[str, str]
) -> DsnRequest:
    """Remove the DSN parameters of RCPT from `parameters` and return the DSN request.

    Raises CommandRejected for invalid parameters, and for parameters that are left over.
    """
    try:
        dsn_request = dsn_parameters.pop_rcpt_parameters(
            parameters, transaction.dsn_request, allows_utf8=transaction.smtputf8
        )
    except InvalidDsnParameter as wrong:
        raise CommandRejected(bad_parameter_reply(str(wrong))) from None
    _require_no_other_parameters(parameters)
    return dsn_request


def _require_no_other_parameters(parameters: dict[str, str]) -> None:
    """Raise CommandRejected if parameters are left that no extension of this server has."""
    if parameters:
        raise CommandRejected(unsupported_option_reply(next(iter(parameters))))


def require_smtputf8_for_address(address: str, *, smtputf8: bool) -> None:
    """Raise CommandRejected if an address is not ASCII without SMTPUTF8 (RFC 6531)."""
    if not smtputf8 and not address.isascii():
        raise CommandRejected(SMTPUTF8_REQUIRED_REPLY)

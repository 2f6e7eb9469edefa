"""The bytes that a client of SMTP or LMTP sends: command lines and message data."""

import asyncio
import re
from dataclasses import dataclass, field

from mail.envelope import dsn_parameters
from mail.envelope.dsn_parameters import Unfit, Wish
from mail.network.byte_stream import PIECE, Read, Vanished
from mail.recipients.recipient_routes import Away, Taken

COMMAND_MAX = 2048  # bytes of a command line with its CRLF

MALFORMED = "500 5.5.2 That is no line of text"
NO_ADDRESS = "553 5.1.3 That is no address"
UNKNOWN = "555 5.5.4 A parameter is not known here"

# A source route before the address is ignored (RFC 5321, section 4.1.1.3)
PATH = re.compile(r'<(?:@[^:<>"]*:)?((?:"(?:[^"\\]|\\.)*"|[^"<>\s])*)>(?:\s+(.*))?')
PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=(\S+))?")
SIZE = re.compile(r"[0-9]{1,20}")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Wrong(Exception):
    """A command is refused because of a protocol error. The text is the SMTP reply."""


class BareLineFeed(Wrong):
    """A command line ends with LF alone. Other servers can read the next line as part of it."""

    def __init__(self) -> None:
        super().__init__("521 5.5.2 Error: bare <LF> received")


class Overlong(Exception):
    """A command line was too long and is discarded."""


class Wire:
    """A reader of lines and pieces with a buffer of received bytes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._read: Read = reader.read
        self._kept = bytearray()

    def through(self, read: Read) -> None:
        """Read from another source from now on."""
        self._read = read

    def taken(self) -> bytes:
        """Return the buffered bytes and empty the buffer."""
        taken = bytes(self._kept)
        self._kept.clear()
        return taken

    async def line(self) -> bytes:
        """Return the next line without its CRLF.

        Raises CommandLineTooLong, BareLineFeed or ConnectionClosed.
        """
        dropped = False
        while (end := self._kept.find(b"\n")) < 0:
            if len(self._kept) > COMMAND_MAX:
                self._kept.clear()
                dropped = True
            self._kept += await self.piece(kept=False)
        line = bytes(self._kept[:end])
        del self._kept[: end + 1]
        if dropped or end >= COMMAND_MAX:
            raise Overlong
        if not line.endswith(b"\r"):
            raise BareLineFeed
        return line[:-1]

    async def exactly(self, size: int) -> bytes:
        """Return exactly this number of bytes. Raises ConnectionClosed."""
        while len(self._kept) < size:
            self._kept += await self.piece(kept=False)
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken

    async def piece(self, *, kept: bool = True) -> bytes:
        """Return available bytes, as soon as there are any. Raises ConnectionClosed at the end."""
        if kept and self._kept:
            piece = bytes(self._kept[:PIECE])
            del self._kept[:PIECE]
            return piece
        try:
            piece = await self._read(PIECE)
        except ConnectionError:
            raise Vanished from None
        if not piece:
            raise Vanished
        return piece

    @property
    def ahead(self) -> bool:
        """True if a further line is already buffered (RFC 2920)."""
        return b"\n" in self._kept

    def back(self, rest: bytes) -> None:
        """Put bytes back that belong to the next command."""
        self._kept[:0] = rest


@dataclass(slots=True)
class Transaction:
    """An SMTP transaction: the parameters of MAIL and the recipients."""

    sender: str  # empty for the null path
    size: int  # SIZE parameter; 0 if missing
    utf8: bool
    digest: str = ""  # SHA-256 of the message, hex, once it has come
    recipients: list[Taken] = field(default_factory=list)
    turned_away: list[Away] = field(
        default_factory=list
    )  # at most as many as the delivery trace lists
    wish: Wish = dsn_parameters.USUAL  # parameters of MAIL


def command(line: bytes) -> tuple[str, str]:
    """Return the verb in capitals and the argument. Raises CommandRejected."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise Wrong(MALFORMED) from None
    verb, _, argument = text.partition(" ")
    if CONTROL.search(text) or not verb:
        raise Wrong(MALFORMED)
    return verb.upper(), argument.strip()


def path(keyword: str, argument: str) -> tuple[str, dict[str, str]]:
    """Return the address in angle brackets and the parameters after it. Raises CommandRejected."""
    if not argument.upper().startswith(keyword):
        raise Wrong(f"501 5.5.4 The command goes on with {keyword}<address>")
    found = PATH.fullmatch(argument[len(keyword) :].strip())
    if not found:
        raise Wrong(NO_ADDRESS)
    parameters = {}
    for word in (found[2] or "").split():
        parameter = PARAMETER.fullmatch(word)
        if not parameter:
            raise Wrong("501 5.5.4 That is no parameter")
        if parameter[1].upper() in parameters:
            raise Wrong("501 5.5.4 A parameter stands there twice")
        parameters[parameter[1].upper()] = parameter[2] or ""
    return found[1], parameters


def begun(sender: str, parameters: dict[str, str]) -> Transaction:
    """Return the transaction that MAIL begins. Raises CommandRejected for bad parameters."""
    utf8 = parameters.pop("SMTPUTF8", None)
    body = parameters.pop("BODY", "7BIT").upper()
    size = parameters.pop("SIZE", "0")
    try:
        wish = dsn_parameters.of_message(parameters)
    except Unfit as wrong:
        raise Wrong(f"501 5.5.4 {wrong}") from None
    if parameters:
        raise Wrong(UNKNOWN)
    if utf8 or body not in {"7BIT", "8BITMIME"} or not SIZE.fullmatch(size):
        raise Wrong("501 5.5.4 A parameter has a wrong value")
    need_utf8(sender, utf8=utf8 is not None)
    return Transaction(sender, int(size), utf8 is not None, wish=wish)


def wanted(transaction: Transaction, parameters: dict[str, str]) -> Wish:
    """Return the DSN request of RCPT. Raises CommandRejected for bad parameters."""
    try:
        wish = dsn_parameters.of_recipient(parameters, transaction.wish, utf8=transaction.utf8)
    except Unfit as wrong:
        raise Wrong(f"501 5.5.4 {wrong}") from None
    if parameters:
        raise Wrong(UNKNOWN)
    return wish


def need_utf8(address: str, *, utf8: bool) -> None:
    """Raise CommandRejected if an address is not ASCII without SMTPUTF8 (RFC 6531)."""
    if not utf8 and not address.isascii():
        raise Wrong("553 5.6.7 Such an address needs SMTPUTF8")

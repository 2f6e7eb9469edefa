"""What comes out of a script: what is to be done with a message, in this order."""

from dataclasses import dataclass

from mail.sieve.source_position import Place

# `edits` of an action: how many of the plan's edits were made to the message before it.


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the message in the inbox."""

    flags: tuple[str, ...] = ()
    implicit: bool = False  # because nothing else was done with it
    edits: int = 0


@dataclass(frozen=True, slots=True)
class FileInto:
    """Store the message in a mailbox."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create: bool = False  # the mailbox, if it is not there (RFC 5490)
    copy: bool = False  # the implicit keep was not cancelled (RFC 3894)
    special_use: str | None = None  # goes before the name, if there is such a mailbox (RFC 8579)
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the message on."""

    address: str
    copy: bool = False
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Discard:
    """Throw the message away; it stands beside others where both were asked for."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the message; it is the only action then."""

    reason: str
    extended: bool = False  # ereject: in the SMTP dialogue if that is possible (RFC 5429)


@dataclass(frozen=True, slots=True)
class Copy:
    """Where a copy of what is sent is stored (RFC 8580)."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create: bool = False
    special_use: str | None = None


@dataclass(frozen=True, slots=True)
class Vacation:
    """Answer, unless the sender has had an answer under this handle for so long (RFC 5230)."""

    to: str  # the sender of the envelope
    handle: str
    seconds: int
    subject: str
    reason: str
    mime: bool = False  # the reason is a MIME entity, with its header
    from_: str | None = None
    fcc: Copy | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell somebody of the message by mail (RFC 5435, RFC 5436)."""

    method: str  # the URI as it was given
    to: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]  # of the URI: name in lower case, value
    body: str  # of the URI
    message: str  # "": the caller makes one
    importance: int  # 1 is high, 3 low
    from_: str | None = None
    options: tuple[str, ...] = ()
    fcc: Copy | None = None


Action = Keep | FileInto | Redirect | Discard | Reject | Vacation | Notify


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field before all others, or behind them."""

    name: str
    value: str  # decoded, in one line
    last: bool = False


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Take out the field at this place among all, as they stand then; 0 is the first."""

    position: int


Edit = AddHeader | DeleteHeader


@dataclass(frozen=True, slots=True)
class Traced:
    """What a command or a test did."""

    place: Place
    text: str
    script: str = ""  # the name of the included one


@dataclass(frozen=True, slots=True)
class Remembered:
    """An id that `duplicate` has seen and that is to be kept for so long (RFC 7352)."""

    key: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a script wants done with one message."""

    actions: tuple[Action, ...]
    edits: tuple[Edit, ...] = ()
    remembered: tuple[Remembered, ...] = ()
    asked: frozenset[str] = frozenset()  # ids that the outcome hung on
    trace: tuple[Traced, ...] = ()
    steps: int = 0

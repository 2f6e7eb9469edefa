"""The result of a script: actions on a message, in their order."""

from dataclasses import dataclass

from mail.sieve.source_position import Place

# `edit_count` of an action: how many edits of the plan were made to the message before it.


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the message in the inbox."""

    flags: tuple[str, ...] = ()
    implicit: bool = False  # because no other action cancelled it
    edits: int = 0


@dataclass(frozen=True, slots=True)
class FileInto:
    """Store the message in a mailbox."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create: bool = False  # if it does not exist (RFC 5490)
    copy: bool = False  # :copy (RFC 3894)
    special_use: str | None = (
        None  # used instead of the name, if there is such a mailbox (RFC 8579)
    )
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the message to another address."""

    address: str
    copy: bool = False
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Discard:
    """Discard the message. It is listed with other actions if the script has both."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the message. It is the only action then."""

    reason: str
    extended: bool = False  # refuse in the SMTP dialogue if possible (RFC 5429)


@dataclass(frozen=True, slots=True)
class Copy:
    """Where a copy of a sent message is stored (RFC 8580)."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create: bool = False
    special_use: str | None = None


@dataclass(frozen=True, slots=True)
class Vacation:
    """Reply, unless the sender got a reply with this handle in the interval (RFC 5230)."""

    to: str  # the envelope sender
    handle: str
    seconds: int
    subject: str
    reason: str
    mime: bool = False  # the reason is a MIME entity, with its header
    from_: str | None = None
    fcc: Copy | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """Notify addresses of the message by mail (RFC 5435, RFC 5436)."""

    method: str  # the mailto URI
    to: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]  # of the URI: name in lower case, value
    body: str  # of the URI
    message: str  # "": the caller chooses the text
    importance: int  # 1 (high) to 3 (low)
    from_: str | None = None
    options: tuple[str, ...] = ()
    fcc: Copy | None = None


Action = Keep | FileInto | Redirect | Discard | Reject | Vacation | Notify


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field before or after all other fields."""

    name: str
    value: str  # decoded, on one line
    last: bool = False


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Delete the field at a position among all fields at that time; 0 is the first."""

    position: int


Edit = AddHeader | DeleteHeader


@dataclass(frozen=True, slots=True)
class Traced:
    """What a command or a test did."""

    place: Place
    text: str
    script: str = ""  # of an included script, else ""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An id that `duplicate` must remember for a number of seconds (RFC 7352)."""

    key: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a script decided for one message."""

    actions: tuple[Action, ...]
    edits: tuple[Edit, ...] = ()
    remembered: tuple[Remembered, ...] = ()
    asked: frozenset[str] = frozenset()  # keys of `duplicate` that the result depends on
    trace: tuple[Traced, ...] = ()
    steps: int = 0

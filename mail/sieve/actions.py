"""The result of a script: actions on a message, in their order."""

from dataclasses import dataclass

from mail.sieve.source_position import SourcePosition

# `edit_count` of an action: how many edits of the plan were made to the message before it.


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the message in the inbox."""

    flags: tuple[str, ...] = ()
    is_implicit: bool = False  # because no other action cancelled it
    edit_count: int = 0


@dataclass(frozen=True, slots=True)
class FileInto:
    """Store the message in a mailbox."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create_mailbox: bool = False  # if it does not exist (RFC 5490)
    keeps_implicit_keep: bool = False  # :copy (RFC 3894)
    special_use: str | None = (
        None  # used instead of the name, if there is such a mailbox (RFC 8579)
    )
    edit_count: int = 0


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the message to another address."""

    address: str
    keeps_implicit_keep: bool = False
    edit_count: int = 0


@dataclass(frozen=True, slots=True)
class Discard:
    """Discard the message. It is listed with other actions if the script has both."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the message. It is the only action then."""

    reason: str
    is_ereject: bool = False  # refuse in the SMTP dialogue if possible (RFC 5429)


@dataclass(frozen=True, slots=True)
class FccCopy:
    """Where a copy of a sent message is stored (RFC 8580)."""

    mailbox: str
    flags: tuple[str, ...] = ()
    create_mailbox: bool = False
    special_use: str | None = None


@dataclass(frozen=True, slots=True)
class VacationReply:
    """Reply, unless the sender got a reply with this handle in the interval (RFC 5230)."""

    recipient: str  # the envelope sender
    handle: str
    interval_seconds: int
    subject: str
    reason: str
    is_mime: bool = False  # the reason is a MIME entity, with its header
    from_: str | None = None
    fcc: FccCopy | None = None


@dataclass(frozen=True, slots=True)
class MailNotification:
    """Notify addresses of the message by mail (RFC 5435, RFC 5436)."""

    method: str  # the mailto URI
    recipients: tuple[str, ...]
    header_fields: tuple[tuple[str, str], ...]  # of the URI: name in lower case, value
    body: str  # of the URI
    message: str  # "": the caller chooses the text
    importance: int  # 1 (high) to 3 (low)
    from_: str | None = None
    options: tuple[str, ...] = ()
    fcc: FccCopy | None = None


Action = Keep | FileInto | Redirect | Discard | Reject | VacationReply | MailNotification


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Add a field before or after all other fields."""

    name: str
    value: str  # decoded, on one line
    at_end: bool = False


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Delete the field at a position among all fields at that time; 0 is the first."""

    position: int


Edit = AddHeader | DeleteHeader


@dataclass(frozen=True, slots=True)
class ScriptTraceStep:
    """What a command or a test did."""

    position: SourcePosition
    text: str
    script_name: str = ""  # of an included script, else ""


@dataclass(frozen=True, slots=True)
class TrackedDuplicate:
    """An id that `duplicate` must remember for a number of seconds (RFC 7352)."""

    key: str
    seconds: int


@dataclass(frozen=True, slots=True)
class SievePlan:
    """All that a script decided for one message."""

    actions: tuple[Action, ...]
    edits: tuple[Edit, ...] = ()
    tracked_duplicates: tuple[TrackedDuplicate, ...] = ()
    # keys of `duplicate` that the result depends on
    checked_duplicate_keys: frozenset[str] = frozenset()
    trace: tuple[ScriptTraceStep, ...] = ()
    steps: int = 0

"""Convert Sieve commands to filter actions, the reverse of filter_compiler.script_from_filter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from mail.filters.filter_compiler import MAX_VACATION_SECONDS
from mail.filters.sieve_to_conditions import (
    ImportProblems,
    NoFilterEquivalent,
    require_allowed_arguments,
    require_string_arguments_without_variables,
)
from mail.mailboxes.paths import canonical_path
from mail.mime import ParsedPart, decoded_content, parse_structure
from mail.mime.charsets import decode_text
from mail.sieve.execution.signatures import SieveCall
from mail.sieve.extensions.vacation import DEFAULT_INTERVAL
from mail.sieve.source_position import SCRIPT_START, SourcePosition
from models.quantities import describe_duration

JUNK_USE = "\\junk"
_ALTERNATIVE_TYPE = "multipart/alternative"
_FIELD_BY_TYPE = {"text/plain": "text", "text/html": "html"}
_VACATION_ARGUMENTS = (
    "days",
    "seconds",
    "period",
    "subject",
    "from",
    "addresses",
    "mime",
    "handle",
)
_FILEINTO_ARGUMENTS = ("mailbox", "copy", "create", "flags", "specialuse")
_FIELD_BY_FLAG = {"\\seen": "seen", "\\flagged": "flag"}


@dataclass(frozen=True, slots=True)
class MailboxName:
    """A mailbox as a script names it: by special use, else by path."""

    path: str
    special_use: str | None = None  # in lower case: "\\junk"
    position: SourcePosition = field(default=SCRIPT_START, compare=False)


@dataclass(frozen=True, slots=True)
class BlockEffect:
    """The combined effect of a sequence of commands.

    The action uses the names of the API, with MailboxName for mailboxes. It is {} if the message is
    handled as without a filter.
    """

    action: dict[str, Any]
    is_explicit_store: bool  # a command stores the message
    has_keep: bool  # one of them is `keep`
    added_flags: frozenset[str]  # in lower case
    removed_flags: frozenset[str]
    resets_flags: bool  # `setflag` removed earlier flags


def effect_of_commands(
    commands: Sequence[SieveCall], reply_interval: int, problems: ImportProblems
) -> BlockEffect:
    """Return the effect of commands without `if`. What filters can't do is added to the problems.

    `reply_interval` is the seconds between two replies to a sender.
    """
    work = _EffectBuilder(reply_interval, problems)
    for call in commands:
        try:
            work.add_command(call)
        except NoFilterEquivalent as fault:
            problems.errors.append(fault.problem)
    return work.combined_effect_with_warnings()


class _EffectBuilder:
    """The accumulated effect of the commands."""

    def __init__(self, reply_interval: int, problems: ImportProblems) -> None:
        self.reply_interval, self.problems = min(reply_interval, MAX_VACATION_SECONDS), problems
        self.added_flags: dict[str, str] = {}  # as written, by lower case
        self.removed_flags: dict[str, str] = {}
        self.stored_in: list[MailboxName] = []
        self.copied_to: list[MailboxName] = []
        self.kept = self.cancelled = self.stopped = self.reset = False
        self.flags_at_stores: list[
            tuple[SourcePosition, frozenset[str]]
        ] = []  # flags at each command that stores
        self.targets: list[str] = []
        self.reply: dict[str, str] | None = None

    def add_command(self, command: SieveCall) -> None:
        """Add the effect of a command. Raises NoFilterEquivalent."""
        if command.name in ("addflag", "setflag", "removeflag"):
            self.add_flag_command(command)
        elif command.name == "keep":
            self.kept = True
            self.add_flags_of_store(command)
        elif command.name == "fileinto":
            self.add_fileinto(command)
        elif command.name == "redirect":
            self.targets += require_string_arguments_without_variables(command, "address")
            self.cancelled = self.cancelled or not command.has_argument("copy")
        elif command.name == "vacation":
            self.set_reply(command)
        elif command.name == "discard":
            self.cancelled = True
        elif command.name == "stop":
            self.stopped = True
        else:
            raise NoFilterEquivalent(
                command.position, f"Filters have no equivalent of the command {command.name}."
            )

    def add_flag_command(self, command: SieveCall) -> None:
        """Add the effect of `addflag`, `setflag` or `removeflag`."""
        if command.has_argument("variable"):
            raise NoFilterEquivalent(command.position, "Filters have no variables.")
        names = _flags_of_argument(command, "list")
        if command.name == "removeflag":
            self.removed_flags |= names
            self.added_flags = {
                low: name for low, name in self.added_flags.items() if low not in names
            }
            return
        if command.name == "setflag":
            self.added_flags, self.reset = {}, True
        self.added_flags |= names
        self.removed_flags = {
            low: name for low, name in self.removed_flags.items() if low not in names
        }

    def add_fileinto(self, command: SieveCall) -> None:
        """Add the effect of `fileinto`."""
        require_allowed_arguments(command, _FILEINTO_ARGUMENTS)
        (path,) = require_string_arguments_without_variables(command, "mailbox")
        use = (
            "".join(require_string_arguments_without_variables(command, "specialuse")).lower()
            or None
        )
        mailboxes = self.copied_to if command.has_argument("copy") else self.stored_in
        mailboxes.append(MailboxName(canonical_path(path), use, command.position))
        self.add_flags_of_store(command)

    def add_flags_of_store(self, command: SieveCall) -> None:
        """Record the flags that a command stores the message with."""
        own_flags = (
            _flags_of_argument(command, "flags")
            if command.has_argument("flags")
            else self.added_flags
        )
        self.flags_at_stores.append((command.position, frozenset(own_flags)))
        self.added_flags = {**self.added_flags, **own_flags}

    def set_reply(self, command: SieveCall) -> None:
        """Set the reply from a `vacation` command."""
        require_allowed_arguments(command, (*_VACATION_ARGUMENTS, "reason"))
        if self.reply is not None:
            raise NoFilterEquivalent(command.position, "A filter can reply only once.")
        (text,) = require_string_arguments_without_variables(command, "reason")
        subject = "".join(require_string_arguments_without_variables(command, "subject"))
        texts = (
            _texts_of_entity(text, command.position)
            if command.has_argument("mime")
            else {"text": text}
        )
        self.reply = {"subject": subject.strip(), "text": "", "html": "", **texts}
        if self.reply_interval != _vacation_interval_seconds(command):
            period = describe_duration(timedelta(seconds=self.reply_interval))
            words = f"Filters reply to a sender once in {period}."
            self.problems.warn(command.position, words)
        if command.has_argument("from") or command.has_argument("addresses"):
            words = "Filters reply only for the addresses of the account."
            self.problems.warn(command.position, words)

    def combined_effect_with_warnings(self) -> BlockEffect:
        """Return the combined effect and warn about flags that differ between stores."""
        stays = self.kept or not (self.stored_in or self.cancelled)
        for index, flags in self.flags_at_stores:
            if flags != frozenset(self.added_flags):
                self.problems.warn(index, "A filter sets its flags wherever the message is stored.")
        effect: dict[str, Any] = {"stop": True} if self.stopped else {}
        effect |= {name: True for low, name in _FIELD_BY_FLAG.items() if low in self.added_flags}
        effect |= {name: False for low, name in _FIELD_BY_FLAG.items() if low in self.removed_flags}
        effect |= self._storage_fields(keeps_default=stays)
        effect["keywords"] = [
            name for low, name in self.added_flags.items() if low not in _FIELD_BY_FLAG
        ]
        effect["removeKeywords"] = [
            name for low, name in self.removed_flags.items() if low not in _FIELD_BY_FLAG
        ]
        effect |= {"forwardTo": list(dict.fromkeys(self.targets)), "reply": self.reply}
        action = {name: value for name, value in effect.items() if value or value is False}
        stores = bool(self.stored_in or self.copied_to or self.kept)
        return BlockEffect(
            action,
            stores,
            self.kept,
            frozenset(self.added_flags),
            frozenset(self.removed_flags),
            self.reset,
        )

    def _storage_fields(self, *, keeps_default: bool) -> dict[str, Any]:
        """Return the action fields that store, copy or delete the message."""
        folders = [*self.stored_in, *self.copied_to]
        if keeps_default:
            return {"copyTo": list(dict.fromkeys([*self.copied_to, *self.stored_in]))}
        if not folders:
            return {"delete": True}
        first, *others = folders
        others = [other for other in dict.fromkeys(others) if other != first]
        if first.special_use == JUNK_USE:
            return {"spam": True, "copyTo": others}
        return {"mailbox": first, "copyTo": others}


def _flags_of_argument(command: SieveCall, argument_name: str) -> dict[str, str]:
    """Return the flags of an argument as written, by lower case."""
    return {
        word.lower(): word
        for text in require_string_arguments_without_variables(command, argument_name)
        for word in text.split()
    }


def _vacation_interval_seconds(command: SieveCall) -> int:
    """Return the seconds in which a sender gets no second reply."""
    day = 86_400
    if command.has_argument("seconds"):
        return command.number_argument("seconds")
    return (
        command.number_argument("days") * day if command.has_argument("days") else DEFAULT_INTERVAL
    )


def _texts_of_entity(mime_entity: str, position: SourcePosition) -> dict[str, str]:
    """Return text and HTML of a MIME entity. Raises NoFilterEquivalent for other content."""
    raw = mime_entity.encode()
    structure = parse_structure(raw)
    parts: tuple[ParsedPart, ...] = (
        structure.parts if structure.content_type == _ALTERNATIVE_TYPE else (structure,)
    )
    kinds = [_FIELD_BY_TYPE.get(part.content_type) for part in parts]
    if None in kinds or len(set(kinds)) < len(kinds) or not kinds:
        raise NoFilterEquivalent(position, "A filter replies with text, HTML or both.")
    return {
        kind: decode_text(decoded_content(raw, part), part.params.get("charset"))
        for kind, part in zip(kinds, parts, strict=True)
        if kind
    }

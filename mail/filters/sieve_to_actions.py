"""Convert Sieve commands to filter actions, the reverse of filter_compiler.script_from_filter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mail.filters.filter_compiler import VACATION
from mail.filters.sieve_to_conditions import Told, Unsaid, known, strings
from mail.mailboxes.paths import spelled
from mail.mime import Part, content, split
from mail.mime.charsets import decode
from mail.sieve.execution.signatures import Call
from mail.sieve.extensions.vacation import USUAL
from mail.sieve.source_position import START, Place

JUNK = "\\junk"
_ALTERNATIVE = "multipart/alternative"
_TEXTS = {"text/plain": "text", "text/html": "html"}
_ANSWERED = ("days", "seconds", "period", "subject", "from", "addresses", "mime", "handle")
_FILED = ("mailbox", "copy", "create", "flags", "specialuse")
_FLAGS = {"\\seen": "seen", "\\flagged": "flag"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A mailbox as a script names it: by special use, else by path."""

    path: str
    use: str | None = None  # in lower case: "\\junk"
    place: Place = field(default=START, compare=False)


@dataclass(frozen=True, slots=True)
class Deed:
    """The combined effect of a sequence of commands.

    The action uses the names of the API, with MailboxName for mailboxes. It is {} if the message is
    handled as without a filter.
    """

    action: dict[str, Any]
    stores: bool  # a command stores the message
    keeps: bool  # one of them is `keep`
    on: frozenset[str]  # in lower case
    off: frozenset[str]
    resets: bool  # `setflag` removed earlier flags


def deed_of(calls: Sequence[Call], interval: int, told: Told) -> Deed:
    """Return the effect of commands without `if`. What filters can't do is added to the problems.

    `reply_interval` is the seconds between two replies to a sender.
    """
    work = _Work(interval, told)
    for call in calls:
        try:
            work.do(call)
        except Unsaid as fault:
            told.faults.append(fault.problem)
    return work.deed()


class _Work:
    """The accumulated effect of the commands."""

    def __init__(self, interval: int, told: Told) -> None:
        self.interval, self.told = min(interval, VACATION), told
        self.on: dict[str, str] = {}  # as written, by lower case
        self.off: dict[str, str] = {}
        self.stored: list[Folder] = []
        self.copied: list[Folder] = []
        self.kept = self.cancelled = self.stopped = self.reset = False
        self.flagged: list[tuple[Place, frozenset[str]]] = []  # flags at each command that stores
        self.targets: list[str] = []
        self.reply: dict[str, str] | None = None

    def do(self, call: Call) -> None:
        """Add the effect of a command. Raises NoFilterEquivalent."""
        if call.name in ("addflag", "setflag", "removeflag"):
            self.flag(call)
        elif call.name == "keep":
            self.kept = True
            self.marked(call)
        elif call.name == "fileinto":
            self.file(call)
        elif call.name == "redirect":
            self.targets += strings(call, "address")
            self.cancelled = self.cancelled or not call.has("copy")
        elif call.name == "vacation":
            self.answer(call)
        elif call.name == "discard":
            self.cancelled = True
        elif call.name == "stop":
            self.stopped = True
        else:
            raise Unsaid(call.place, f"filters have no {call.name}")

    def flag(self, call: Call) -> None:
        """Add the effect of `addflag`, `setflag` or `removeflag`."""
        if call.has("variable"):
            raise Unsaid(call.place, "filters have no variables")
        names = _flags(call, "list")
        if call.name == "removeflag":
            self.off |= names
            self.on = {low: name for low, name in self.on.items() if low not in names}
            return
        if call.name == "setflag":
            self.on, self.reset = {}, True
        self.on |= names
        self.off = {low: name for low, name in self.off.items() if low not in names}

    def file(self, call: Call) -> None:
        """Add the effect of `fileinto`."""
        known(call, _FILED)
        (path,) = strings(call, "mailbox")
        use = "".join(strings(call, "specialuse")).lower() or None
        to = self.copied if call.has("copy") else self.stored
        to.append(Folder(spelled(path), use, call.place))
        self.marked(call)

    def marked(self, call: Call) -> None:
        """Record the flags that a command stores the message with."""
        own = _flags(call, "flags") if call.has("flags") else self.on
        self.flagged.append((call.place, frozenset(own)))
        self.on = {**self.on, **own}

    def answer(self, call: Call) -> None:
        """Set the reply from a `vacation` command."""
        known(call, (*_ANSWERED, "reason"))
        if self.reply is not None:
            raise Unsaid(call.place, "a filter answers once")
        (text,) = strings(call, "reason")
        subject = "".join(strings(call, "subject"))
        texts = _read(text, call.place) if call.has("mime") else {"text": text}
        self.reply = {"subject": subject.strip(), "text": "", "html": "", **texts}
        if self.interval != _seconds(call):
            words = f"filters answer a sender once in {self.interval} seconds"
            self.told.warn(call.place, words)
        if call.has("from") or call.has("addresses"):
            words = "filters answer for the addresses of the account, and no others"
            self.told.warn(call.place, words)

    def deed(self) -> Deed:
        """Return the combined effect and warn about flags that differ between stores."""
        stays = self.kept or not (self.stored or self.cancelled)
        for place, flags in self.flagged:
            if flags != frozenset(self.on):
                self.told.warn(place, "a filter sets its flags wherever the message is stored")
        found: dict[str, Any] = {"stop": True} if self.stopped else {}
        found |= {name: True for low, name in _FLAGS.items() if low in self.on}
        found |= {name: False for low, name in _FLAGS.items() if low in self.off}
        found |= self._placed(stays=stays)
        found["labels"] = [name for low, name in self.on.items() if low not in _FLAGS]
        found["removeLabels"] = [name for low, name in self.off.items() if low not in _FLAGS]
        found |= {"targets": list(dict.fromkeys(self.targets)), "reply": self.reply}
        action = {name: value for name, value in found.items() if value or value is False}
        stores = bool(self.stored or self.copied or self.kept)
        return Deed(action, stores, self.kept, frozenset(self.on), frozenset(self.off), self.reset)

    def _placed(self, *, stays: bool) -> dict[str, Any]:
        """Return the action fields that store, copy or delete the message."""
        folders = [*self.stored, *self.copied]
        if stays:
            return {"copyTo": list(dict.fromkeys([*self.copied, *self.stored]))}
        if not folders:
            return {"delete": True}
        first, *others = folders
        others = [one for one in dict.fromkeys(others) if one != first]
        if first.use == JUNK:
            return {"spam": True, "copyTo": others}
        return {"mailbox": first, "copyTo": others}


def _flags(call: Call, name: str) -> dict[str, str]:
    """Return the flags of an argument as written, by lower case."""
    return {word.lower(): word for text in strings(call, name) for word in text.split()}


def _seconds(call: Call) -> int:
    """Return the seconds in which a sender gets no second reply."""
    day = 86_400
    if call.has("seconds"):
        return call.number("seconds")
    return call.number("days") * day if call.has("days") else USUAL


def _read(entity: str, place: Place) -> dict[str, str]:
    """Return text and HTML of a MIME entity. Raises NoFilterEquivalent for other content."""
    raw = entity.encode()
    whole = split(raw)
    parts: tuple[Part, ...] = whole.parts if whole.content_type == _ALTERNATIVE else (whole,)
    kinds = [_TEXTS.get(part.content_type) for part in parts]
    if None in kinds or len(set(kinds)) < len(kinds) or not kinds:
        raise Unsaid(place, "a filter answers by a text, HTML, or both")
    return {
        kind: decode(content(raw, part), part.params.get("charset"))
        for kind, part in zip(kinds, parts, strict=True)
        if kind
    }

"""What a sender wants to be told of, as parameters of MAIL and RCPT (RFC 3461, RFC 6533)."""

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from enum import StrEnum

import idna

from mail.mime.header_encoding import needs_utf8, on_wire

ENVID_MAX = 100  # characters as they come (RFC 3461, section 5.4)
ORCPT_MAX = 500
NEVER = "NEVER"
FULL, HDRS = "FULL", "HDRS"

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_XTEXT_UTF8 = re.compile(r"(?:[!-*,-<>-~\x80-\U0010ffff]|\+[0-9A-F]{2})*")
_ESCAPED = re.compile(r"\+([0-9A-F]{2})")
_TYPE = re.compile(r"[A-Za-z0-9-]{1,40}")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_PRINTABLE_UTF8 = re.compile(r"[\x20-\x7e\xa0-\U0010ffff]+")


class On(StrEnum):
    """What may become of a message, for a recipient."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class Unfit(ValueError):
    """A parameter has a value that it cannot have."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted for a recipient, and how its message is called."""

    on: frozenset[On] | None = None  # nothing: never; None: it was not said
    orcpt: str | None = None  # the first recipient: type;address
    envid: str | None = None
    ret: str | None = None

    def wants(self, what: On) -> bool:
        """Whether this is to be told of: of failures and delays also where nothing was said."""
        return what is not On.SUCCESS if self.on is None else what in self.on

    @property
    def notify(self) -> str | None:
        """NOTIFY, as it is kept and as it goes over the wire."""
        return None if self.on is None else ",".join(sorted(self.on)) or NEVER

    def without(self, what: On) -> "Wish":
        """The same, but of this nothing is to be told."""
        return self if self.on is None else replace(self, on=self.on - {what})


ALL = Wish(frozenset(On), ret=HDRS)
NOTHING = Wish(frozenset())
USUAL = Wish()


def kept(notify: str | None) -> frozenset[On] | None:
    """What `Wish.notify` has made, read again."""
    return None if notify is None else frozenset(On(each) for each in words(notify))


def words(notify: str) -> list[str]:
    """What is between the commas; nothing for NEVER."""
    return [] if notify == NEVER else notify.split(",")


def stored(wish: Wish, address: str) -> dict[str, str | None] | None:
    """A wish about an address, as it is kept beside a message; None where nothing was said."""
    if wish == USUAL:
        return None
    said = {"notify": wish.notify, "orcpt": wish.orcpt, "envid": wish.envid, "ret": wish.ret}
    return {"address": address, **said}


def restored(kept_: Mapping[str, str | None] | None) -> Wish:
    """What `stored` has made, read again."""
    if kept_ is None:
        return USUAL
    return Wish(kept(kept_["notify"]), kept_["orcpt"], kept_["envid"], kept_["ret"])


# ---------------------------------------------------------------- what comes


def of_message(parameters: MutableMapping[str, str]) -> Wish:
    """Take ENVID and RET out of the parameters of MAIL; Unfit."""
    ret = parameters.pop("RET", None)
    if ret is not None and (ret := ret.upper()) not in {FULL, HDRS}:
        raise Unfit("RET is FULL or HDRS")
    envid = parameters.pop("ENVID", None)
    if envid is None:
        return Wish(ret=ret)
    if len(envid) > ENVID_MAX or not _XTEXT.fullmatch(envid):
        raise Unfit("ENVID is xtext, of at most 100 characters")
    envid = plain(envid)
    if not _PRINTABLE.fullmatch(envid):
        raise Unfit("ENVID is printable")
    return Wish(envid=envid, ret=ret)


def of_recipient(parameters: MutableMapping[str, str], of: Wish, *, utf8: bool) -> Wish:
    """Take NOTIFY and ORCPT out of the parameters of RCPT; with `of` the message. Unfit."""
    on, orcpt = None, None
    if (given := parameters.pop("NOTIFY", None)) is not None:
        said = words(given.upper())
        if not set(said) <= set(On) or len(set(said)) < len(said):
            raise Unfit("NOTIFY is NEVER, or some of SUCCESS, FAILURE and DELAY")
        on = frozenset(On(each) for each in said)
    if (given := parameters.pop("ORCPT", None)) is not None:
        orcpt = _first(given, utf8=utf8)
    return replace(of, on=on, orcpt=orcpt)


def _first(given: str, *, utf8: bool) -> str:
    kind, mark, address = given.partition(";")
    wide = utf8 and kind.lower() == "utf-8"
    form, shown = (_XTEXT_UTF8, _PRINTABLE_UTF8) if wide else (_XTEXT, _PRINTABLE)
    if len(given) > ORCPT_MAX or not (mark and _TYPE.fullmatch(kind) and form.fullmatch(address)):
        raise Unfit("ORCPT is a type, a semicolon and xtext, of at most 500 characters")
    address = plain(address)
    if not shown.fullmatch(address):
        raise Unfit("ORCPT is printable")
    return f"{kind.lower()};{address}"


def plain(xtext: str) -> str:
    """The text that was made xtext (RFC 3461, section 4)."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), xtext)


# ---------------------------------------------------------------- what goes on


def xtext(text: str) -> str:
    """A text as a parameter has it; what is not ASCII as RFC 6533, section 3, writes it."""
    return "".join(map(_sign, escaped(text)))


def _sign(sign: str) -> str:
    return sign if "!" <= sign <= "~" and sign not in "+=" else f"+{ord(sign):02X}"


def escaped(text: str) -> str:
    """The text with numbers for what is not ASCII."""
    return "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)


def typed(address: str) -> str:
    """An address with its type, as ORCPT and the fields of reports have it."""
    if needs_utf8(address):
        return f"utf-8;{address}"
    try:
        return f"rfc822;{on_wire(address)}"
    except idna.IDNAError:
        return f"rfc822;{escaped(address)}"


def mail_parameters(wish: Wish) -> list[str]:
    """ENVID and RET for a server that offers DSN."""
    given = [] if wish.ret is None else [f"RET={wish.ret}"]
    if wish.envid and len(made := xtext(wish.envid)) <= ENVID_MAX:
        given.append(f"ENVID={made}")
    return given


def rcpt_parameters(wish: Wish) -> list[str]:
    """NOTIFY and ORCPT, likewise."""
    given = [] if wish.notify is None else [f"NOTIFY={wish.notify}"]
    if wish.orcpt:
        kind, _, address = wish.orcpt.partition(";")
        if len(made := f"{kind};{xtext(address)}") <= ORCPT_MAX:
            given.append(f"ORCPT={made}")
    return given


def some(wishes: Iterable[Wish]) -> Wish:
    """What was said of the message, by the wishes of its recipients."""
    return next((each for each in wishes if each.envid or each.ret), USUAL)

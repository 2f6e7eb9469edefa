"""DSN parameters of MAIL and RCPT (RFC 3461, RFC 6533)."""

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from enum import StrEnum

import idna

from mail.mime.header_encoding import needs_utf8, on_wire

ENVID_MAX = 100  # encoded characters (RFC 3461, section 5.4)
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
    """A condition of the NOTIFY parameter."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class Unfit(ValueError):
    """A DSN parameter has an invalid value."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The DSN request of a recipient (NOTIFY, ORCPT) and its message (ENVID, RET)."""

    on: frozenset[On] | None = None  # empty: NOTIFY=NEVER; None: no NOTIFY
    orcpt: str | None = None  # original recipient as type;address
    envid: str | None = None
    ret: str | None = None

    def wants(self, what: On) -> bool:
        """True if this condition is reported. Without NOTIFY, these are failures and delays."""
        return what is not On.SUCCESS if self.on is None else what in self.on

    @property
    def notify(self) -> str | None:
        """The value of NOTIFY for storage and SMTP. None without NOTIFY."""
        return None if self.on is None else ",".join(sorted(self.on)) or NEVER

    def without(self, what: On) -> "Wish":
        """A copy of the request without this condition."""
        return self if self.on is None else replace(self, on=self.on - {what})


ALL = Wish(frozenset(On), ret=HDRS)
NOTHING = Wish(frozenset())
USUAL = Wish()


def kept(notify: str | None) -> frozenset[On] | None:
    """Parse a stored value of NOTIFY. Raises ValueError if a condition is unknown."""
    return None if notify is None else frozenset(On(condition) for condition in words(notify))


def words(notify: str) -> list[str]:
    """The conditions of a NOTIFY value. Empty for NEVER."""
    return [] if notify == NEVER else notify.split(",")


def stored(wish: Wish, address: str) -> dict[str, str | None] | None:
    """A JSON record of an address and its DSN request. None for the default request."""
    if wish == USUAL:
        return None
    said = {"notify": wish.notify, "orcpt": wish.orcpt, "envid": wish.envid, "ret": wish.ret}
    return {"address": address, **said}


def restored(kept_: Mapping[str, str | None] | None) -> Wish:
    """The DSN request of a record that `record_from_request` made."""
    if kept_ is None:
        return USUAL
    return Wish(kept(kept_["notify"]), kept_["orcpt"], kept_["envid"], kept_["ret"])


def of_message(parameters: MutableMapping[str, str]) -> Wish:
    """Remove ENVID and RET from the parameters of MAIL and return them as a request.

    Raises InvalidDsnParameter.
    """
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
    """Remove NOTIFY and ORCPT from the parameters of RCPT and add them to a request.

    `message_request` has ENVID and RET of the message. Raises InvalidDsnParameter.
    """
    on, orcpt = None, None
    if (given := parameters.pop("NOTIFY", None)) is not None:
        said = words(given.upper())
        if not set(said) <= set(On) or len(set(said)) < len(said):
            raise Unfit("NOTIFY is NEVER, or some of SUCCESS, FAILURE and DELAY")
        on = frozenset(On(condition) for condition in said)
    if (given := parameters.pop("ORCPT", None)) is not None:
        orcpt = _first(given, utf8=utf8)
    return replace(of, on=on, orcpt=orcpt)


def _first(given: str, *, utf8: bool) -> str:
    """Decode the value of ORCPT. Raises InvalidDsnParameter."""
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
    """Decode xtext (RFC 3461, section 4)."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), xtext)


def xtext(text: str) -> str:
    """Encode a text as xtext, with non-ASCII characters as in RFC 6533, section 3."""
    return "".join(map(_sign, escaped(text)))


def _sign(sign: str) -> str:
    """One ASCII character as xtext."""
    return sign if "!" <= sign <= "~" and sign not in "+=" else f"+{ord(sign):02X}"


def escaped(text: str) -> str:
    """The text with each non-ASCII character as a hexadecimal escape (RFC 6533, section 3)."""
    return "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)


def typed(address: str) -> str:
    """An address with its address type, as in ORCPT and Final-Recipient."""
    if needs_utf8(address):
        return f"utf-8;{address}"
    try:
        return f"rfc822;{on_wire(address)}"
    except idna.IDNAError:
        return f"rfc822;{escaped(address)}"


def mail_parameters(wish: Wish) -> list[str]:
    """The ENVID and RET parameters of MAIL, for a server that offers DSN."""
    given = [] if wish.ret is None else [f"RET={wish.ret}"]
    if wish.envid and len(made := xtext(wish.envid)) <= ENVID_MAX:
        given.append(f"ENVID={made}")
    return given


def rcpt_parameters(wish: Wish) -> list[str]:
    """The NOTIFY and ORCPT parameters of RCPT, for a server that offers DSN."""
    given = [] if wish.notify is None else [f"NOTIFY={wish.notify}"]
    if wish.orcpt:
        kind, _, address = wish.orcpt.partition(";")
        if len(made := f"{kind};{xtext(address)}") <= ORCPT_MAX:
            given.append(f"ORCPT={made}")
    return given


def some(wishes: Iterable[Wish]) -> Wish:
    """The first request that has ENVID or RET, or the default request."""
    return next((request for request in wishes if request.envid or request.ret), USUAL)

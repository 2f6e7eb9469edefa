"""DSN parameters of MAIL and RCPT (RFC 3461, RFC 6533)."""

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from enum import StrEnum

import idna

from mail.mime.header_encoding import needs_smtputf8, with_ascii_domain

ENVID_MAX = 100  # encoded characters (RFC 3461, section 5.4)
ORCPT_MAX = 500
NOTIFY_NEVER = "NEVER"
FULL, HDRS = "FULL", "HDRS"

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_XTEXT_UTF8 = re.compile(r"(?:[!-*,-<>-~\x80-\U0010ffff]|\+[0-9A-F]{2})*")
_ESCAPED = re.compile(r"\+([0-9A-F]{2})")
_TYPE = re.compile(r"[A-Za-z0-9-]{1,40}")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_PRINTABLE_UTF8 = re.compile(r"[\x20-\x7e\xa0-\U0010ffff]+")


class NotifyCondition(StrEnum):
    """A condition of the NOTIFY parameter."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class InvalidDsnParameter(ValueError):
    """A DSN parameter has an invalid value. The text becomes part of the SMTP reply."""


@dataclass(frozen=True, slots=True)
class DsnRequest:
    """The DSN request of a recipient (NOTIFY, ORCPT) and its message (ENVID, RET)."""

    conditions: frozenset[NotifyCondition] | None = None  # empty: NOTIFY=NEVER; None: no NOTIFY
    orcpt: str | None = None  # original recipient as type;address
    envid: str | None = None
    ret: str | None = None

    def is_report_wanted(self, condition: NotifyCondition) -> bool:
        """True if this condition is reported. Without NOTIFY, these are failures and delays."""
        return (
            condition is not NotifyCondition.SUCCESS
            if self.conditions is None
            else condition in self.conditions
        )

    @property
    def notify_value(self) -> str | None:
        """The value of NOTIFY for storage and SMTP. None without NOTIFY."""
        return (
            None if self.conditions is None else ",".join(sorted(self.conditions)) or NOTIFY_NEVER
        )

    def without_condition(self, condition: NotifyCondition) -> "DsnRequest":
        """A copy of the request without this condition."""
        return (
            self
            if self.conditions is None
            else replace(self, conditions=self.conditions - {condition})
        )


ALL_REPORTS = DsnRequest(frozenset(NotifyCondition), ret=HDRS)
NO_REPORTS = DsnRequest(frozenset())
DEFAULT_REPORTS = DsnRequest()


def conditions_from_notify(notify: str | None) -> frozenset[NotifyCondition] | None:
    """Parse a stored value of NOTIFY. Raises ValueError if a condition is unknown."""
    return (
        None
        if notify is None
        else frozenset(NotifyCondition(condition) for condition in split_notify(notify))
    )


def split_notify(notify: str) -> list[str]:
    """The conditions of a NOTIFY value. Empty for NEVER."""
    return [] if notify == NOTIFY_NEVER else notify.split(",")


def record_unless_default_request(
    request: DsnRequest, address: str
) -> dict[str, str | None] | None:
    """A JSON record of an address and its DSN request. None for the default request."""
    if request == DEFAULT_REPORTS:
        return None
    values = {
        "notify": request.notify_value,
        "orcpt": request.orcpt,
        "envid": request.envid,
        "ret": request.ret,
    }
    return {"address": address, **values}


def dsn_request_from_record_or_default(record: Mapping[str, str | None] | None) -> DsnRequest:
    """The DSN request of a record that `record_unless_default_request` made.

    A record without request is the default request.
    """
    if record is None:
        return DEFAULT_REPORTS
    return DsnRequest(
        conditions_from_notify(record.get("notify")),
        record.get("orcpt"),
        record.get("envid"),
        record.get("ret"),
    )


def pop_mail_parameters(parameters: MutableMapping[str, str]) -> DsnRequest:
    """Remove ENVID and RET from the parameters of MAIL and return them as a request.

    Raises InvalidDsnParameter.
    """
    ret = parameters.pop("RET", None)
    if ret is not None and (ret := ret.upper()) not in {FULL, HDRS}:
        raise InvalidDsnParameter("Bad RET parameter syntax: must be FULL or HDRS")
    envid = parameters.pop("ENVID", None)
    if envid is None:
        return DsnRequest(ret=ret)
    if len(envid) > ENVID_MAX or not _XTEXT.fullmatch(envid):
        raise InvalidDsnParameter(
            "Bad ENVID parameter syntax: must be xtext of at most 100 characters"
        )
    envid = decode_xtext(envid)
    if not _PRINTABLE.fullmatch(envid):
        raise InvalidDsnParameter("Bad ENVID parameter syntax: must be printable")
    return DsnRequest(envid=envid, ret=ret)


def pop_rcpt_parameters(
    parameters: MutableMapping[str, str], message_request: DsnRequest, *, allows_utf8: bool
) -> DsnRequest:
    """Remove NOTIFY and ORCPT from the parameters of RCPT and add them to a request.

    `message_request` has ENVID and RET of the message. Raises InvalidDsnParameter.
    """
    conditions, orcpt = None, None
    if (value := parameters.pop("NOTIFY", None)) is not None:
        names = split_notify(value.upper())
        if not set(names) <= set(NotifyCondition) or len(set(names)) < len(names):
            raise InvalidDsnParameter(
                "Bad NOTIFY parameter syntax: must be NEVER, or SUCCESS, FAILURE, DELAY"
            )
        conditions = frozenset(NotifyCondition(condition) for condition in names)
    if (value := parameters.pop("ORCPT", None)) is not None:
        orcpt = _parse_orcpt(value, allows_utf8=allows_utf8)
    return replace(message_request, conditions=conditions, orcpt=orcpt)


def _parse_orcpt(value: str, *, allows_utf8: bool) -> str:
    """Decode the value of ORCPT. Raises InvalidDsnParameter."""
    address_type, separator, address = value.partition(";")
    is_utf8 = allows_utf8 and address_type.lower() == "utf-8"
    encoded_pattern, decoded_pattern = (
        (_XTEXT_UTF8, _PRINTABLE_UTF8) if is_utf8 else (_XTEXT, _PRINTABLE)
    )
    if len(value) > ORCPT_MAX or not (
        separator and _TYPE.fullmatch(address_type) and encoded_pattern.fullmatch(address)
    ):
        raise InvalidDsnParameter(
            "Bad ORCPT parameter syntax: must be type;xtext of at most 500 characters"
        )
    address = decode_xtext(address)
    if not decoded_pattern.fullmatch(address):
        raise InvalidDsnParameter("Bad ORCPT parameter syntax: must be printable")
    return f"{address_type.lower()};{address}"


def decode_xtext(xtext: str) -> str:
    """Decode xtext (RFC 3461, section 4)."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), xtext)


def encode_xtext(text: str) -> str:
    """Encode a text as xtext, with non-ASCII characters as in RFC 6533, section 3."""
    return "".join(map(_xtext_character, escape_non_ascii(text)))


def _xtext_character(character: str) -> str:
    """One ASCII character as xtext."""
    return (
        character if "!" <= character <= "~" and character not in "+=" else f"+{ord(character):02X}"
    )


def escape_non_ascii(text: str) -> str:
    """The text with each non-ASCII character as a hexadecimal escape (RFC 6533, section 3)."""
    return "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)


def typed_address(address: str) -> str:
    """An address with its address type, as in ORCPT and Final-Recipient."""
    if needs_smtputf8(address):
        return f"utf-8;{address}"
    try:
        return f"rfc822;{with_ascii_domain(address)}"
    except idna.IDNAError:
        return f"rfc822;{escape_non_ascii(address)}"


def format_mail_parameters(request: DsnRequest) -> list[str]:
    """The ENVID and RET parameters of MAIL, for a server that offers DSN."""
    parameters = [] if request.ret is None else [f"RET={request.ret}"]
    if request.envid and len(encoded := encode_xtext(request.envid)) <= ENVID_MAX:
        parameters.append(f"ENVID={encoded}")
    return parameters


def format_rcpt_parameters(request: DsnRequest) -> list[str]:
    """The NOTIFY and ORCPT parameters of RCPT, for a server that offers DSN."""
    parameters = [] if request.notify_value is None else [f"NOTIFY={request.notify_value}"]
    if request.orcpt:
        address_type, _, address = request.orcpt.partition(";")
        if len(encoded := f"{address_type};{encode_xtext(address)}") <= ORCPT_MAX:
            parameters.append(f"ORCPT={encoded}")
    return parameters


def first_message_request(requests: Iterable[DsnRequest]) -> DsnRequest:
    """The first request that has ENVID or RET, or the default request."""
    return next((request for request in requests if request.envid or request.ret), DEFAULT_REPORTS)

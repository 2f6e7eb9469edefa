"""Syntax and normal forms of mail addresses, domain names and usernames."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import idna

from mail.addresses.quoted_local_part import join_address, split_address
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_FIXED_PART = 32  # letters beside the "*" of a pattern, at most
MAX_ADDRESS = 320  # letters of an address (RFC 3696, erratum 1690)
_MAX_DOMAIN = 1024  # letters, in any form: what is longer is not looked at
LABEL_DELIMITERS = "+-_=#"  # what may begin a label
_USERNAME = re.compile(r"[a-z0-9-]+([._=:][a-z0-9-]+)*(@[a-z0-9-]+([._=:][a-z0-9-]+)*)?")
_LOCAL_PART = re.compile(r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f\ud800-\udfff]{1,64}")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # what no store takes, and so nobody has
_QUOTABLE_LOCAL_PART = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,64}")
_DOMAIN_LABEL = re.compile(r"(?!-)[^\W_]([\w-]*[^\W_])?", re.UNICODE)


class NormalizedAddress(NamedTuple):
    """The form in which addresses are stored and compared."""

    local_part: str  # without label and dots
    domain: str  # in Unicode


def normalized_address(address: str) -> NormalizedAddress:
    """Return the normalized address.

    `A.da+news@XN--BCHER-KVA.example` is `ada` at `bücher.example`.
    """
    local, domain = folded_parts(address)
    return NormalizedAddress(local.partition("+")[0].replace(".", ""), domain)


def folded_parts(address: str) -> tuple[str, str]:
    """Return the local part in lower case, with label and dots, and the normalized domain.

    The local part has no quotes.
    """
    local, domain = split_address(unicodedata.normalize("NFC", address.strip().lower()))
    return local, normalized_domain(domain)


def normalized_domain(domain: str) -> str:
    """Return the domain in lower case, each label in Unicode (IDNA 2008)."""
    domain = unicodedata.normalize("NFC", domain.strip().lower())
    domain = (domain if domain.isascii() else _uts46_mapped(domain)).rstrip(".")
    return ".".join(_decoded_label(label) for label in domain.split("."))


def _uts46_mapped(domain: str) -> str:
    """Return the name after UTS 46 mapping, so that "ﬁ" and "fi" are one domain."""
    try:
        return idna.uts46_remap(domain, std3_rules=False)
    except idna.IDNAError:
        return domain


def _decoded_label(label: str) -> str:
    try:
        return idna.decode(label) if label.startswith("xn--") else label
    except idna.IDNAError:
        return label  # nobody's, and so it is not found


def username_key(username: str) -> str:
    """Return the form in which usernames are compared: lower case, without dots before an "@".

    A username that looks like an address is compared as an address: without label, the domain in
    Unicode.
    """
    username = unicodedata.normalize("NFC", username.strip().lower())
    if "@" in username:
        return "@".join(normalized_address(username))
    return username.replace(".", "")


def normalize_and_validate_username(username: str, *, path: Sequence[str] = ("username",)) -> str:
    """Return the username in lower case. Raises InvalidInput if it is not a username."""
    username = unicodedata.normalize("NFC", username.strip().lower())
    if len(username) > 128 or not _USERNAME.fullmatch(username):  # noqa: PLR2004 - as documented
        raise InvalidInput(
            "A username must have from 1 to 128 characters of a-z, 0-9 and -, in "
            "groups joined by one of . _ = :",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    return username


def normalize_and_validate_address(
    address: str, *, path: str = "address", allows_quotes: bool = False
) -> str:
    """Return the address in NFC with the domain in Unicode, without quotes that it doesn't need.

    With `allows_quotes`, the local part can be one that needs quotes, as addresses of other servers
    can have it. Raises InvalidInput if it is not an address.
    """
    normal_address = unicodedata.normalize("NFC", address.strip())
    local, domain = split_address(normal_address)
    fits = (
        "@" in normal_address
        and len(address) <= MAX_ADDRESS
        and _LOCAL_PART.fullmatch(local) is not None
        and ".." not in local
        and not local.startswith(".")
        and not local.endswith(".")
    )
    if not fits and allows_quotes:
        has_quotes = normal_address.rpartition("@")[0] != local
        fits = (
            has_quotes
            and len(address) <= MAX_ADDRESS
            and _QUOTABLE_LOCAL_PART.fullmatch(local) is not None
        )
    if not fits:
        raise InvalidInput(
            "Not an email address.", constraint=ValidationConstraint.ADDRESS, path=[path]
        )
    domain = normalize_and_validate_domain(domain, path=path)
    return join_address(local, domain) if allows_quotes else f"{local}@{domain}"


def normalize_and_validate_domain(name: str, *, path: str = "domain") -> str:
    """Return the normalized domain. Raises InvalidInput if it is not a domain name."""
    domain = _normalized_domain_or_none(name) if len(name) <= _MAX_DOMAIN else None
    if domain is None:
        raise InvalidInput(
            "Not a domain name.", constraint=ValidationConstraint.DOMAIN, path=[path]
        )
    return domain


@lru_cache(4096)
def _normalized_domain_or_none(name: str) -> str | None:
    domain = normalized_domain(name)
    labels = domain.split(".")
    fits = all(_DOMAIN_LABEL.fullmatch(label) and label[:4] != "xn--" for label in labels)
    if len(domain) > 255 or not fits:  # noqa: PLR2004
        return None
    try:
        if len(ascii_domain(domain)) > 253:  # noqa: PLR2004 - RFC 1035, section 2.3.4
            return None
    except idna.IDNAError:
        return None
    return domain


def ascii_domain(domain: str) -> str:
    """Return the domain in ASCII. Raises idna.IDNAError if it has no such form."""
    if domain.isascii():
        if any(len(label) > 63 for label in domain.split(".")):  # noqa: PLR2004 - RFC 1035
            raise idna.IDNAError("label too long")
        return domain
    return idna.encode(domain, uts46=True).decode()


def undotted_local_parts_to_look_up(local_part: str, delimiters: str) -> list[str]:
    """Return the local parts without dots that a mail can be for: the whole one first.

    Addresses never contain a +, so with + as delimiter the label is always removed.
    """
    local_part = local_part.replace(".", "")
    if "+" in delimiters:
        local_part = local_part.partition("+")[0]
    delimiter_positions = [at for sign in delimiters if (at := local_part.find(sign)) > 0]
    return (
        [local_part, local_part[: min(delimiter_positions)]]
        if delimiter_positions
        else [local_part]
    )


def patterns_matching_local_parts(*local_parts: str) -> list[str]:
    """Return all patterns that match the local parts, best first.

    The local parts themselves are first, then patterns by length of the fixed part, prefix first.
    """
    patterns = list(local_parts)
    for fixed in range(min(max(map(len, local_parts)), MAX_FIXED_PART), 0, -1):
        for local in local_parts:
            if len(local) >= fixed:
                patterns += [f"{local[:fixed]}*", f"*{local[-fixed:]}"]
    return list(dict.fromkeys([*patterns, "*"]))

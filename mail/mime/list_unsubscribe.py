"""The URLs of List-Unsubscribe (RFC 2369), and one-click unsubscription (RFC 8058)."""

import re
from collections.abc import Iterable

from mail.mime.header_fields import RawField

ONE_CLICK_FIELDS = frozenset(("list-unsubscribe", "list-unsubscribe-post"))
_MAX_SIGNERS = 10
_URI_OR_COMMENT = re.compile(r"<([^<>]*)>|\((?:[^()\\]|\\.)*\)")
_WEB_URL = re.compile(r'https?://[^\s<>"]+', re.IGNORECASE)
_DKIM_TAG = re.compile(r"(?:^|;)\s*([dhs])\s*=([^;]*)")


def unsubscribe_web_urls(value: str) -> list[str]:
    """Return the http and https URLs of a List-Unsubscribe value, in order.

    White space inside angle brackets is ignored. Without any brackets, the URLs are separated by
    commas or white space.
    """
    uris = [match[1] for match in _URI_OR_COMMENT.finditer(value) if match[1] is not None]
    candidates = ["".join(uri.split()) for uri in uris] or re.split(r"[\s,]+", value)
    return [uri for uri in candidates if _WEB_URL.fullmatch(uri)]


def is_https(url: str) -> bool:
    """True if the URL has the scheme https."""
    return url[:8].lower() == "https://"


def signers_of_one_click_fields(fields: Iterable[RawField]) -> list[list[str]]:
    """Return selector and domain of each DKIM signature that covers both one-click fields.

    The signatures are not verified.
    """
    signers: list[list[str]] = []
    for name, value in fields:
        if name != "dkim-signature":
            continue
        tags = {tag: "".join(text.split()).lower() for tag, text in _DKIM_TAG.findall(value)}
        if set(tags.get("h", "").split(":")) >= ONE_CLICK_FIELDS and tags.keys() >= {"d", "s"}:
            signers.append([tags["s"], tags["d"]])
    return signers[:_MAX_SIGNERS]

"""Redirect URIs of OAuth clients: which ones can be registered, and which one a request can name.

A URI in a request must equal a registered one character by character. Only the port of a loopback
URI can differ (RFC 8252, section 7.3).
"""

import re
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_URIS = 20  # of one client
MAX_URI_LENGTH = 1000  # characters
_ALLOWED_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")  # RFC 3986, no fragment
_LOOPBACK_URI = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::(\d{1,5}))?([/?].*)?")
_HTTPS_URI = re.compile(r"https://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?([/?].*)?")
_PRIVATE_USE_URI = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+:[^:].*")
_DOT_SEGMENT = re.compile(r"/(\.|%2e){1,2}(/|$)", re.IGNORECASE)
MAX_PORT = 65535


def validate_redirect_uris(uris: Sequence[str], path: Sequence[str]) -> list[str]:
    """Return redirect URIs that can be registered, each once.

    Raises InvalidInput with the index of the first URI that can't, or if there are none or too
    many.
    """
    if not uris:
        text = "At least one redirect URI is required."
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=path)
    if len(uris) > MAX_URIS:
        text = f"At most {MAX_URIS} redirect URIs are allowed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=path)
    for index, uri in enumerate(uris):
        if problem := _registration_problem(uri):
            raise InvalidInput(
                problem, constraint=ValidationConstraint.FORMAT, path=path, index=index
            )
    return list(dict.fromkeys(uris))


def _registration_problem(uri: str) -> str | None:
    """Return why a redirect URI can't be registered; None if it can."""
    if not uri or len(uri) > MAX_URI_LENGTH:
        return f"A redirect URI has 1 to {MAX_URI_LENGTH} characters."
    if not _ALLOWED_CHARACTERS.fullmatch(uri):
        return "A redirect URI has only characters of RFC 3986 and no fragment."
    if _LOOPBACK_URI.fullmatch(uri) or _HTTPS_URI.fullmatch(uri):
        try:
            is_port_valid = urlsplit(uri).port != 0
        except ValueError:
            is_port_valid = False
        if not is_port_valid:
            return f"The port of a redirect URI is 1 to {MAX_PORT}."
    elif not _PRIVATE_USE_URI.fullmatch(uri):
        return (
            "A redirect URI begins with https:// and a host in lower case, or with "
            "http://127.0.0.1 or http://[::1], or has a private-use scheme with a dot "
            "(RFC 8252). It has no user information."
        )
    if _DOT_SEGMENT.search(uri.partition("?")[0]):
        return "A redirect URI has no dot segments."
    return None


def is_registered_redirect_uri(registered: Collection[str], requested: str) -> bool:
    """True if a request can name this redirect URI."""
    if len(requested) > MAX_URI_LENGTH:
        return False
    if requested in registered:
        return True
    without_port = _loopback_uri_without_port(requested)
    return without_port is not None and without_port in map(_loopback_uri_without_port, registered)


def _loopback_uri_without_port(uri: str) -> str | None:
    """Return a loopback URI without its port; None if it is no loopback URI with a valid port."""
    match = _LOOPBACK_URI.fullmatch(uri)
    if match is None or not _ALLOWED_CHARACTERS.fullmatch(uri):
        return None
    origin, port, rest = match.groups()
    if port is not None and not 0 < int(port) <= MAX_PORT:
        return None
    return origin + (rest or "")


def form_action_source(uri: str) -> str:
    """Return the CSP source that allows a form to be redirected to this URI.

    It is a scheme only if the grammar of CSP has no source for the host.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "[" in parts.netloc:
        return f"{parts.scheme}:"
    return f"{parts.scheme}://{parts.netloc}"

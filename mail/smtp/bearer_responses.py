"""Responses of the SASL mechanisms OAUTHBEARER (RFC 7628) and XOAUTH2, and their errors."""

import base64
import json
from dataclasses import dataclass, field

SEPARATOR = "\x01"
OAUTHBEARER = "OAUTHBEARER"
SMTP_SCOPE = "smtp"


@dataclass(frozen=True, slots=True)
class BearerCredentials:
    """The token of a response, and the name of its user; None: it names none."""

    login_name: str | None
    token: str = field(repr=False)


def parse_bearer_response_or_none(mechanism: str, text: str) -> BearerCredentials | None:
    """Return the credentials of a client's response; None if it is malformed."""
    head, *rest = text.split(SEPARATOR)
    pairs, end = rest[:-2], rest[-2:]
    if end != ["", ""]:
        return None
    login_name: str | None
    if mechanism == OAUTHBEARER:
        login_name = _login_name_of_gs2_header(head)
        if login_name is None:
            return None
    else:
        key, _, login_name = head.partition("=")
        if key != "user" or not login_name:
            return None
    values = dict(pair.partition("=")[::2] for pair in pairs)
    scheme, _, token = values.get("auth", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return None
    return BearerCredentials(login_name or None, token.strip())


def _login_name_of_gs2_header(header: str) -> str | None:
    """Return the name in a GS2 header such as `n,a=ada@example.org,`.

    Returns "" without a name, None if the header is malformed.
    """
    parts = header.split(",")
    if len(parts) != 3 or parts[0] not in ("n", "y") or parts[2]:  # noqa: PLR2004 - RFC 5801
        return None
    if not parts[1]:
        return ""
    key, _, name = parts[1].partition("=")
    return name.replace("=2C", ",").replace("=3D", "=") if key == "a" and name else None


def error_challenge(mechanism: str, issuer: str) -> str:
    """Return the challenge, in base64, that tells a client that its token is refused."""
    if mechanism == OAUTHBEARER:
        error = {
            "status": "invalid_token",
            "scope": SMTP_SCOPE,
            "openid-configuration": f"{issuer}/.well-known/openid-configuration",
        }
    else:
        error = {"status": "401", "schemes": "bearer", "scope": SMTP_SCOPE}
    return base64.b64encode(json.dumps(error).encode()).decode()

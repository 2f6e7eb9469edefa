"""Results of the authentication of a received message."""

from enum import StrEnum


class AuthenticationResultCode(StrEnum):
    """Result of SPF, DKIM, DMARC or ARC (RFC 8601, section 2.7)."""

    NONE = "NONE"
    NEUTRAL = "NEUTRAL"
    PASS = "PASS"  # noqa: S105 - a result
    FAIL = "FAIL"
    SOFTFAIL = "SOFTFAIL"
    POLICY = "POLICY"
    TEMPERROR = "TEMPERROR"
    PERMERROR = "PERMERROR"

"""Types that show how a message was received: authentication of its sender, and TLS."""

from typing import Any

import strawberry

from graph.types.errors import attribute_field
from mail.mime.authentication_results import MethodVerdict, method_verdict_or_none
from models.messages.authentication import AuthenticationResultCode


@strawberry.type(description="TLS version and cipher suite of a connection.")
class TlsInfo:
    cipher: str = attribute_field(
        "Name of the cipher suite in OpenSSL, such as `TLS_AES_256_GCM_SHA384`."
    )
    version: str = attribute_field("Version of TLS, such as `TLSv1.3`.")
    certificate_check: str | None = attribute_field(
        "Rule by which the certificate of the receiving server was checked, such as `DANE` (RFC "
        "7672), `MTA-STS` (RFC 8461) or `policy` (a TLS policy of this server). Null: the "
        "certificate was not checked, or this server received the message."
    )

    @classmethod
    def parse_or_none(cls, description: str | None) -> "TlsInfo | None":
        """Parse a description of TLS such as `TLSv1.3 TLS_AES_256_GCM_SHA384 (DANE)`."""
        version, _, rest = (description or "").partition(" ")
        cipher, _, check = rest.partition(" ")
        if not version:
            return None
        return cls(cipher=cipher, version=version, certificate_check=check.strip("()") or None)


@strawberry.type(
    description="Result of one authentication method for a message (RFC 8601), as the receiving "
    "server found it."
)
class AuthenticationResult:
    result: AuthenticationResultCode = attribute_field(
        "Result of the method, such as PASS or FAIL."
    )
    domain: str | None = attribute_field(
        "Domain that was checked: of MAIL FROM or HELO for SPF, of the signature for DKIM, of From "
        "for DMARC. Null for ARC, and if the receiving server did not name it."
    )
    selector: str | None = attribute_field(
        "Selector of the DKIM key. Null for other methods, and if the receiving server did not "
        "name it."
    )
    reason: str | None = attribute_field(
        "Reason for the result in English, as the receiving server gave it. Null: it gave none."
    )

    @classmethod
    def from_verdict_or_none(cls, verdict: MethodVerdict | None) -> "AuthenticationResult | None":
        """Return the GraphQL object of a verdict; None if the method has no result."""
        if verdict is None:
            return None
        return cls(
            result=verdict.result,
            domain=verdict.domain,
            selector=verdict.selector,
            reason=verdict.reason,
        )


@strawberry.type(
    description="Authentication of the sender of a message, as the receiving server wrote it in "
    "Authentication-Results (RFC 8601). Fields of other servers are not trusted."
)
class MessageAuthentication:
    spf: AuthenticationResult | None = attribute_field(
        "Result of SPF (RFC 7208): whether the client may send for the domain of MAIL FROM or "
        "HELO. Null: not checked."
    )
    dkim: AuthenticationResult | None = attribute_field(
        "Result of DKIM (RFC 6376). Of several signatures, a valid one of the domain of From "
        "counts first, then any valid one. Null: not checked."
    )
    dmarc: AuthenticationResult | None = attribute_field(
        "Result of DMARC (RFC 7489) for the domain of From. Null: not checked."
    )
    arc: AuthenticationResult | None = attribute_field(
        "Result of the ARC chain (RFC 8617). Null: not checked."
    )
    header: str | None = attribute_field(
        "Values of the header fields Authentication-Results (RFC 8601) of the receiving server, "
        "one on each line. Null: it wrote none."
    )

    @classmethod
    def from_json_or_none(
        cls, stored_results: dict[str, Any] | None
    ) -> "MessageAuthentication | None":
        """Return the stored results of authentication; None if there are none."""
        if stored_results is None:
            return None
        header = stored_results["results"]
        results = {
            method: AuthenticationResult.from_verdict_or_none(
                method_verdict_or_none(header or "", method, stored_results.get(method))
            )
            for method in ("spf", "dkim", "dmarc", "arc")
        }
        return cls(**results, header=header)


def received_tls_from_json_or_none(stored_results: dict[str, Any] | None) -> TlsInfo | None:
    """Return the TLS of the session in which a message was received; None without TLS."""
    return TlsInfo.parse_or_none((stored_results or {}).get("tls"))

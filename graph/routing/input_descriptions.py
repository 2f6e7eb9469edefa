"""Descriptions of input fields of relay hosts, transports and TLS policies."""

HOST_DESCRIPTION = (
    "Host name or IP address of the relay host, optionally with a port, as in "
    "`relay.example.com:587`. With a port, an IPv6 address is in brackets, as in "
    "`[2001:db8::1]:587`."
)
TLS_DESCRIPTION = (
    "True requires TLS with a verified certificate. False: TLS is opportunistic and the "
    "certificate is not verified; but with a username, or on port 465, TLS with a verified "
    "certificate is required too. A TLS policy for the relay host changes these rules. The level "
    "ENCRYPT requires TLS without verification, and stricter levels set the check of the "
    "certificate. The levels NONE and MAY do not remove required TLS."
)
USERNAME_DESCRIPTION = (
    "Username to authenticate with (SMTP AUTH), at most 255 printable "
    "characters; it requires a password, and the connection then requires TLS. Default: "
    "no authentication."
)
PASSWORD_DESCRIPTION = (
    "Password for SMTP AUTH, required with `username`. It is stored encrypted, and never "  # noqa: S105 - words
    "returned. Default: none."
)
CHANGED_CREDENTIAL_DESCRIPTION = (
    "New password to authenticate with (SMTP AUTH). It is required if another server "
    "than before would receive the stored one, or with a `username` while none is "
    "stored. Null changes nothing. It is stored encrypted "
    "and never returned."
)
NULLABLE_USERNAME_DESCRIPTION = (
    "Username to authenticate with (SMTP AUTH). Null: no authentication, and "
    "the stored password is deleted."
)
DESTINATION_DESCRIPTION = (
    "Recipients that the transport is for: a domain, .domain for all its "
    "subdomains, an address, or a /regular expression/ that is found in the recipient's address "
    "in lower case."
)
NEXT_HOP_DESCRIPTION = (
    "Server that receives the mail, as host or host:port, by default port 25. Port 465 uses "
    "implicit TLS. An IPv6 address is in brackets, as in `[2001:db8::1]:25`. With `lookupMx`: "
    "domain whose MX hosts receive the mail, as domain or domain:port, without implicit TLS."
)
LOOKUP_MX_DESCRIPTION = (
    "True sends to the MX hosts of the next hop, which is then a domain. False sends to "
    "the next hop itself."
)
PARAMETERS_DESCRIPTION = (
    "Parameters in the syntax of Postfix, with spaces between them, at most 2,000 ASCII "
    "characters. Only `protocols` and `match` are allowed, each once. Every level except NONE "
    "allows `protocols`: `protocols=>=TLSv1.2` requires TLS 1.2 or later. VERIFY and SECURE allow "
    "`match` with server names, such as `match=a.example:.example`. FINGERPRINT requires `match` "
    "with SHA-256 fingerprints in hexadecimal, separated by `|`."
)

"""Descriptions of input fields of relay hosts, transports and TLS policies."""

HOST_DESCRIPTION = (
    "Host name or IP address of the relay host, optionally with a port, as in "
    "`relay.example.com:587`. A port that differs from `port` is refused. With a port, an IPv6 "
    "address is in brackets, as in `[2001:db8::1]:587`."
)
TLS_DESCRIPTION = (
    "True requires TLS with a verified certificate. False: TLS is opportunistic and the "
    "certificate is not verified; but with a username, or on port 465, TLS with a verified "
    "certificate is required too. A TLS policy for the relay host changes these rules. The level "
    "ENCRYPT requires TLS, and without a username removes the check of the certificate. Stricter "
    "levels decide how the certificate is checked. The levels NONE and MAY do not remove required "
    "TLS."
)
USERNAME_DESCRIPTION = (
    "Username to authenticate with (SMTP AUTH), 1 to 255 printable characters. It requires a "
    "password, and the connection then requires TLS. Default: no authentication."
)
PASSWORD_DESCRIPTION = (
    "Password for SMTP AUTH, 1 to 8,192 characters. It is required with `username`, and refused "  # noqa: S105 - words
    "without. It is stored encrypted, and never returned. Default: none."
)
CHANGED_CREDENTIAL_DESCRIPTION = (
    "New password to authenticate with (SMTP AUTH), 1 to 8,192 characters. It is required if "
    "another server than before would receive the stored one, or with a `username` while none is "
    "stored. It is refused without a given or stored username. Null changes nothing. It is stored "
    "encrypted and never returned."
)
NULLABLE_USERNAME_DESCRIPTION = (
    "Username to authenticate with (SMTP AUTH), 1 to 255 printable characters. Without a new "
    "`password`, the stored one is kept. Null: no authentication, and the stored password is "
    "deleted."
)
DESTINATION_DESCRIPTION = (
    "Recipients that the transport is for: a domain, .domain for all its subdomains, an address, "
    "or a /regular expression/ of at most 200 characters. The expression is searched in the "
    "recipient's address in lower case. Of several active transports that match, the first one in "
    "this order is used: address, domain, nearest parent domain, oldest regular expression."
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
    "Parameters of the policy in the syntax of Postfix, with spaces between them, at most 2,000 "
    "ASCII characters. Only `protocols` and `match` are allowed, each once. Every level except "
    "NONE allows `protocols`: `protocols=>=TLSv1.2` requires TLS 1.2 or later. VERIFY and SECURE "
    "allow `match` with at most 50 server names, such as `match=a.example:.example`. The names "
    "`hostname`, `nexthop` and `dot-nexthop` mean the same as in Postfix. FINGERPRINT requires "
    "`match` with at most 50 SHA-256 fingerprints in hexadecimal, separated by `|`."
)

"""The MTA-STS policy and its DNS record for domains of this server (RFC 8461)."""

import hashlib

BEFORE = "mta-sts."  # of the host that serves the policy
PATH = "/.well-known/mta-sts.txt"
OFF = "off"
LIFE = 7 * 86_400  # seconds
SIGNS = 20  # characters; RFC 8461 allows 32


def policy(hostname: str, mode: str) -> str:
    """The policy of a domain that this server is the MX host of."""
    lines = ["version: STSv1", f"mode: {mode}", f"mx: {hostname.lower()}", f"max_age: {LIFE}"]
    return "".join(f"{line}\r\n" for line in lines)


def record(hostname: str, mode: str) -> str:
    """The value of the TXT record. Its id is a digest of the policy."""
    made = hashlib.sha256(policy(hostname, mode).encode()).hexdigest()
    return f"v=STSv1; id={made[:SIGNS]};"

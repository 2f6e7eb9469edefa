"""The MTA-STS policy and its DNS record for domains of this server (RFC 8461)."""

import hashlib

HOST_PREFIX = "mta-sts."  # of the host that serves the policy
POLICY_PATH = "/.well-known/mta-sts.txt"
MODE_OFF = "off"
MAX_AGE = 7 * 86_400  # seconds
ID_LENGTH = 20  # characters; RFC 8461 allows 32


def policy_text(hostname: str, mode: str) -> str:
    """The policy of a domain that this server is the MX host of."""
    lines = ["version: STSv1", f"mode: {mode}", f"mx: {hostname.lower()}", f"max_age: {MAX_AGE}"]
    return "".join(f"{line}\r\n" for line in lines)


def record_value(hostname: str, mode: str) -> str:
    """The value of the TXT record. Its id is a digest of the policy."""
    digest = hashlib.sha256(policy_text(hostname, mode).encode()).hexdigest()
    return f"v=STSv1; id={digest[:ID_LENGTH]};"

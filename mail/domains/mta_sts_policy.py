"""The policy by which servers elsewhere only send to us encrypted (MTA-STS, RFC 8461)."""

import hashlib

BEFORE = "mta-sts."  # what the host that serves a policy is called, before the domain
PATH = "/.well-known/mta-sts.txt"
OFF = "off"
LIFE = 7 * 86_400  # seconds for which it is remembered
SIGNS = 20  # of what tells it from others; 32 at most


def policy(hostname: str, mode: str) -> str:
    """The policy of a domain whose mail this machine takes."""
    lines = ["version: STSv1", f"mode: {mode}", f"mx: {hostname.lower()}", f"max_age: {LIFE}"]
    return "".join(f"{line}\r\n" for line in lines)


def record(hostname: str, mode: str) -> str:
    """The TXT record that says there is one, another for each policy."""
    made = hashlib.sha256(policy(hostname, mode).encode()).hexdigest()
    return f"v=STSv1; id={made[:SIGNS]};"

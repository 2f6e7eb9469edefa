"""What a delivery puts before a message: tests that compare take it off again."""

BLANK = b"\r\n ", b"\r\n\t"  # an empty line stands above what would go on with our fields
FIELDS = [b"Return-Path", b"Delivered-To", b"X-Original-Rcpt"]


def below(stored: bytes) -> bytes:
    """A stored message that was received, as it came."""
    *top, rest = stored.split(b"\r\n", len(FIELDS))
    assert [line.partition(b":")[0] for line in top] == FIELDS
    return bare(rest)


def bare(raw: bytes) -> bytes:
    """What came, without an empty line of ours."""
    return raw.removeprefix(b"\r\n") if raw[:3] in BLANK else raw


def top(address: str, sender: str = "carol@example.com", asked: str = "") -> bytes:
    """What stands before a message to this address."""
    values = f"<{sender}>", address, asked or address
    fields = zip(FIELDS, values, strict=True)
    return b"".join(name + f": {value}\r\n".encode() for name, value in fields)

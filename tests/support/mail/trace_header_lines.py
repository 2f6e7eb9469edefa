"""The trace header fields that a delivery adds to a message, and how tests remove them."""

BLANK_LINE_BEFORE_FOLD = b"\r\n ", b"\r\n\t"
TRACE_FIELDS = [b"Return-Path", b"Delivered-To", b"X-Original-Rcpt"]


def without_trace_fields(stored: bytes) -> bytes:
    """The received message without the trace fields that the delivery has added."""
    *trace_lines, message = stored.split(b"\r\n", len(TRACE_FIELDS))
    assert [line.partition(b":")[0] for line in trace_lines] == TRACE_FIELDS
    return without_blank_line(message)


def without_blank_line(message: bytes) -> bytes:
    """The message without the empty line that the delivery has added before a folded line."""
    return message.removeprefix(b"\r\n") if message[:3] in BLANK_LINE_BEFORE_FOLD else message


def trace_header(
    address: str, sender: str = "carol@example.com", original_recipient: str = ""
) -> bytes:
    """The trace fields of a message to this address."""
    values = f"<{sender}>", address, original_recipient or address
    fields = zip(TRACE_FIELDS, values, strict=True)
    return b"".join(name + f": {value}\r\n".encode() for name, value in fields)

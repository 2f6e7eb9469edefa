"""The messages of an IMAP account, read by imaplib, in a form that can be compared."""

import hashlib
import imaplib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

UNCOPIED_FLAGS = frozenset({"\\Recent", "\\Deleted"})  # a copy in Merganser doesn't have them


@dataclass(frozen=True, slots=True)
class MessageCopy:
    """What must be equal on both servers."""

    digest: str
    flags: frozenset[str]
    received_at: datetime


def listed_names(lines: Sequence[Any]) -> list[str]:
    """Return the names of LIST or LSUB responses, without mailboxes that can't be selected."""
    parsed = [re.fullmatch(rb'\(([^)]*)\) "/" "?([^"]*)"?', line) for line in lines if line]
    return [
        match[2].decode() for match in parsed if match and b"\\noselect" not in match[1].lower()
    ]


def read_messages(client: imaplib.IMAP4, name: str) -> list[MessageCopy]:
    """Return the messages of a mailbox, each once, without the flags that aren't copied."""
    status, (count,) = client.select(f'"{name}"', readonly=True)
    assert status == "OK"
    if count == b"0":  # of whose messages FETCH is an error
        return []
    _, data = client.fetch("1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")
    copies = list[MessageCopy]()
    for item in data:
        if isinstance(item, tuple):
            head, raw = item
            (arrived,) = re.findall(rb'INTERNALDATE "([^"]+)"', head)
            flags = frozenset(flag.decode() for flag in imaplib.ParseFlags(head))
            copy = MessageCopy(
                hashlib.sha256(raw).hexdigest(),
                flags - UNCOPIED_FLAGS,
                datetime.strptime(arrived.decode().strip(), "%d-%b-%Y %H:%M:%S %z"),
            )
            if copy.digest not in {other.digest for other in copies}:
                copies.append(copy)
    return copies


def sort_copies(copies: Sequence[MessageCopy]) -> list[MessageCopy]:
    """Sort messages, so that two mailboxes can be compared."""
    return sorted(copies, key=lambda copy: (copy.received_at, copy.digest))

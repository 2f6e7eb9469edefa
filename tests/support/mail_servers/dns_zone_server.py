"""A name server on loopback that holds what a test says, and the questions it was asked."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from mail.authentication.dns_queries import shared_resolver
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering

CHAIN = 10  # aliases that the server follows


def quoted(text: str | bytes) -> str:
    """A text as TXT records are written, in parts of 255 bytes."""
    raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    parts = [raw[at : at + 255] for at in range(0, max(len(raw), 1), 255)]
    return " ".join('"' + "".join(f"\\{byte:03d}" for byte in part) + '"' for part in parts)


def plain(name: dns.name.Name) -> str:
    """A name in lower case, without the escapes of its presentation."""
    return b".".join(name.labels[:-1]).decode("latin-1").lower()


@dataclass
class Zone(Names):
    """Follows aliases as resolvers do, and counts."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, kind = plain(question.name), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if name in self.silent:
            return
        answer = dns.message.make_response(query)
        at, owner = name, question.name
        for _ in range(CHAIN):
            if found := self.records.get((at, kind)):
                answer.answer.append(dns.rrset.from_text(owner, 60, "IN", kind, *found))
                break
            if at in self.broken:
                answer.set_rcode(dns.rcode.SERVFAIL)
                break
            alias = self.records.get((at, "CNAME"))
            if not alias:
                if not any(known == at for known, _ in self.records):
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                break
            link = dns.rrset.from_text(owner, 60, "IN", "CNAME", *alias)
            answer.answer.append(link)
            owner = link[0].target
            at = plain(owner)
        self.transport.sendto(answer.to_wire(max_size=65535), addr)


def zone(texts: Mapping[str, str], **others: Mapping[str, str]) -> Zone:
    """A server with TXT records by name, and others by kind: A={"name": "192.0.2.1"}."""
    records = {(name, "TXT"): [quoted(text)] for name, text in texts.items()}
    for kind, found in others.items():
        records |= {(name, kind): [value] for name, value in found.items()}
    return Zone(records)


@asynccontextmanager
async def asking(there: Zone) -> AsyncGenerator[str]:
    """Where the server is asked, while it answers."""
    shared_resolver.cache_clear()  # another server may have had this port
    async with answering(there):
        yield f"127.0.0.1:{there.port}"

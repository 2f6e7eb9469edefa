"""A DNS server on loopback that follows CNAME records and counts queries."""

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
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server

MAX_CNAME_CHAIN = 10


def txt_rdata(text: str | bytes) -> str:
    """The data of a TXT record in presentation format, in strings of 255 bytes."""
    raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    parts = [raw[at : at + 255] for at in range(0, max(len(raw), 1), 255)]
    return " ".join('"' + "".join(f"\\{byte:03d}" for byte in part) + '"' for part in parts)


def lowercase_name(name: dns.name.Name) -> str:
    """The name in lower case, without escapes or the final dot."""
    return b".".join(name.labels[:-1]).decode("latin-1").lower()


@dataclass
class DnsZoneServer(FakeDnsServer):
    """Follows CNAME records as resolvers do, and records each query."""

    queries: list[tuple[str, str]] = field(default_factory=list)
    dnssec_names: set[str] | None = field(default_factory=set)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        name, record_type = lowercase_name(question.name), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((name, record_type))
        if name in self.silent_names:
            return
        response = dns.message.make_response(query)
        current_name, owner = name, question.name
        for _ in range(MAX_CNAME_CHAIN):
            if record_data := self.records.get((current_name, record_type)):
                response.answer.append(
                    dns.rrset.from_text(owner, 60, "IN", record_type, *record_data)
                )
                break
            if current_name in self.servfail_names:
                response.set_rcode(dns.rcode.SERVFAIL)
                break
            alias = self.records.get((current_name, "CNAME"))
            if not alias:
                if not any(record_name == current_name for record_name, _ in self.records):
                    response.set_rcode(dns.rcode.NXDOMAIN)
                break
            cname = dns.rrset.from_text(owner, 60, "IN", "CNAME", *alias)
            response.answer.append(cname)
            owner = cname[0].target
            current_name = lowercase_name(owner)
        self.set_dnssec_status(query, response, name)
        self.transport.sendto(response.to_wire(max_size=65535), addr)


def make_dns_zone(texts: Mapping[str, str], **other_records: Mapping[str, str]) -> DnsZoneServer:
    """Make a server with TXT records by name, and other records by type.

    `A={"name": "192.0.2.1"}` adds an A record.
    """
    records = {(name, "TXT"): [txt_rdata(text)] for name, text in texts.items()}
    for record_type, values in other_records.items():
        records |= {(name, record_type): [value] for name, value in values.items()}
    return DnsZoneServer(records)


@asynccontextmanager
async def run_dns_zone(zone_server: DnsZoneServer) -> AsyncGenerator[str]:
    """Run the server, and yield its address for the setting `dns_resolver`."""
    shared_resolver.cache_clear()  # a cached resolver may use the same port
    async with run_dns_server(zone_server):
        yield f"127.0.0.1:{zone_server.port}"

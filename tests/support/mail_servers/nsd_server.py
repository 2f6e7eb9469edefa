"""NSD, an authoritative DNS server."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.message

from bench.servers.ports import free_port
from tests.support.servers.program_process import require_program, running_program
from tests.support.time_limits import HANG_SECONDS

QUERY_TIMEOUT = 1.0  # seconds until a query is repeated
DnsRecords = Mapping[tuple[str, str], Sequence[str]]  # values by name and type
# Resolvers cache no answer of a zone with this TTL, not even that a record is missing.
ZONE_HEAD = """\
$TTL 0
@ SOA localhost. hostmaster.localhost. {serial} 3600 600 86400 0
@ NS localhost.
"""
SERVER_CONFIG = """\
server:
  ip-address: {address}
  port: {port}
  username: ""
  database: ""
  zonesdir: "{folder}"
  zonelistfile: "{folder}/zones"
  xfrdfile: "{folder}/transfers"
  xfrdir: "{folder}"
  pidfile: "{folder}/pid"
remote-control:
  control-enable: no
"""
ZONE_CONFIG = """\
zone:
  name: "{name}"
  zonefile: "{name}.zone"
"""


@dataclass
class NsdServer:
    """A running NSD, and the records of its zones."""

    folder: Path
    address: str
    zone_names: Sequence[str]
    port: int = field(default_factory=free_port)
    records: dict[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    _serial: int = 1

    @property
    def config(self) -> Path:
        return self.folder / "nsd.conf"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def resolver(self) -> str:
        """The value of the setting `dns_resolver`."""
        return f"{self.address}:{self.port}"

    def write_files(self) -> None:
        """Write the configuration, and zones without records."""
        self.folder.mkdir()
        zones = "".join(ZONE_CONFIG.format(name=name) for name in self.zone_names)
        server = SERVER_CONFIG.format(address=self.address, port=self.port, folder=self.folder)
        self.config.write_text(server + zones)
        self._write_zones()

    async def publish(self, records: DnsRecords) -> None:
        """Add records, or replace those of the same name and type; wait until NSD serves them.

        The names are absolute, and have no final dot.
        """
        self.records.update(records)
        self._serial += 1
        self._write_zones()
        os.kill(int((self.folder / "pid").read_text()), signal.SIGHUP)  # reads the zones again
        await self.wait_for_zones()

    async def wait_for_zones(self) -> None:
        """Wait until NSD serves the last version of all zones."""
        serial = self._serial
        for name in self.zone_names:
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    while await self._served_serial(name) < serial:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.005)
            except TimeoutError:
                raise AssertionError(self.log.read_text()) from None

    async def _served_serial(self, zone_name: str) -> int:
        """Return the version of a zone, or 0 without a reply.

        NSD loses queries while it reads the zones.
        """
        query = dns.message.make_query(zone_name, "SOA")
        try:
            response = await dns.asyncquery.udp(query, self.address, QUERY_TIMEOUT, self.port)
        except dns.exception.Timeout:
            return 0
        (records,) = response.answer
        (record,) = records
        return int(record.serial)

    def _write_zones(self) -> None:
        for zone_name in self.zone_names:
            lines = [
                f"{name}. {record_type} {value}\n"
                for (name, record_type), values in self.records.items()
                if name == zone_name or name.endswith(f".{zone_name}")
                for value in values
            ]
            new_file = self.folder / "new"
            new_file.write_text(ZONE_HEAD.format(serial=self._serial) + "".join(lines))
            os.utime(new_file, (self._serial, self._serial))  # NSD reads only changed files
            new_file.replace(self.folder / f"{zone_name}.zone")  # NSD never reads a part of a file


@asynccontextmanager
async def run_nsd(folder: Path, address: str, *zone_names: str) -> AsyncGenerator[NsdServer]:
    """Run NSD at an address with these zones until the block ends."""
    require_program("nsd")
    server = NsdServer(folder, address, zone_names)
    server.write_files()
    command = ["nsd", "-d", "-c", str(server.config)]
    with running_program(command, server.port, server.log, address=address):
        await server.wait_for_zones()
        yield server

"""Scanners on loopback: servers that answer as told, well or badly, and the real ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.servers.bus_servers import BrokerProcess, redis_broker
from bench.servers.ports import HOST, free_port
from tests.support.servers import bus_servers

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-" + b"ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-" + "ANTI-UBE-TEST-EMAIL*C.34X"
NETWORK = (  # modules of rspamd that ask somebody elsewhere
    *("arc", "asn", "bimi", "dkim", "dkim_signing", "dmarc", "fuzzy_check", "greylist", "hfilter"),
    *("mx_check", "neural", "phishing", "ratelimit", "rbl", "replies", "reputation"),
    *("rspamd_update", "spf", "surbl", "url_redirector"),
)
CONF = """
.include "/etc/rspamd/common.conf"
options {{
    .include "/etc/rspamd/options.inc"
    .include(priority=10) "{folder}/options.inc"
}}
logging {{ type = "console"; level = "warning"; }}
worker "normal" {{ bind_socket = "{host}:{port}"; count = 1; }}
worker "controller" {{
    bind_socket = "{host}:{learns}"; count = 1;
    password = "asks-only"; enable_password = "{password}"; secure_ip = "192.0.2.1";
}}
"""
OPTIONS = """
pidfile = "{folder}/rspamd.pid";
filters = "regexp";
dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
rrd = "";
disable_hyperscan = true;
url_tld = "{folder}/domains";
"""
CLAMD = """
TCPSocket {port}
TCPAddr {host}
LocalSocket {folder}/clamd.sock
DatabaseDirectory {folder}/db
TemporaryDirectory {folder}
Foreground yes
StreamMaxLength 1M
"""
PASSWORD = "learn-from-us"  # noqa: S105 - of a server that a test has made

PATIENCE = 60.0  # seconds until it listens

Rude = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def report(score: float, **more: Any) -> bytes:
    """An answer of rspamd."""
    said = {
        "is_skipped": False,
        "score": score,
        "required_score": 15.0,
        "action": "no action",
        "symbols": {"OFFER": {"name": "OFFER", "score": score, "description": "An offer"}},
        **more,
    }
    return http(json.dumps(said).encode())


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def rude(way: Rude) -> AsyncIterator[int]:
    """A server that treats each connection this way, for as long as it wants; its port."""
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await way(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asks goes when it has heard enough
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(*answers: bytes) -> Rude:
    """Hear a while, say this, and hang up."""

    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for each in answers:
            writer.write(each)
            await writer.drain()

    return way


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Neither read nor say anything."""
    await asyncio.Event().wait()


def endless(head: bytes, piece: bytes) -> Rude:
    """Say more and more, without an end."""

    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()

    return way


async def clamd_hears(reader: asyncio.StreamReader) -> bytes:
    """What is sent to be looked into."""
    assert await reader.readexactly(10) == b"zINSTREAM\0"
    heard = b""
    while size := int.from_bytes(await reader.readexactly(4), "big"):
        heard += await reader.readexactly(size)
    return heard


def clamd_says(answer: bytes) -> Rude:
    async def way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clamd_hears(reader)
        writer.write(answer)
        await writer.drain()

    return way


def program(name: str) -> str:
    """Where the program is; skips the test where it is not, but in CI fails."""
    return bus_servers.program(name, "httptools")


def rspamd(folder: Path) -> tuple[BrokerProcess, BrokerProcess, str]:
    """rspamd with its own rules, but for those that ask others; where it learns; its Redis."""
    words = program("rspamd")
    store = redis_broker(program("redis-server"), folder)
    port, learns = free_port(), free_port()
    local = folder / "local" / "local.d"
    local.mkdir(parents=True)
    for name in NETWORK:
        (local / f"{name}.conf").write_text("enabled = false;\n")
    (local / "redis.conf").write_text(f'servers = "{HOST}:{store.port}";\n')
    (local / "classifier-bayes.conf").write_text("min_learns = 1;\n")
    facts = {"folder": folder, "host": HOST, "port": port, "learns": learns}
    (folder / "domains").write_text("com\nexample\nnet\norg\n")  # to read all takes a minute
    (folder / "options.inc").write_text(OPTIONS.format(folder=folder))
    (folder / "rspamd.conf").write_text(CONF.format(**facts, password=PASSWORD))
    places = [f"--var={name}={folder}" for name in ("RUNDIR", "DBDIR", "LOGDIR")]
    command = (words, "-i", "-f", "-c", str(folder / "rspamd.conf"), *places)
    where = f"--var=LOCAL_CONFDIR={folder / 'local'}"
    made = BrokerProcess((*command, where), port, f"http://{HOST}:{port}", folder, PATIENCE, True)
    return made, store, f"http://{HOST}:{learns}"


def clamd(folder: Path) -> BrokerProcess:
    """clamd that knows one signature, of the file that all agree to call a virus."""
    port = free_port()
    (folder / "db").mkdir()
    (folder / "db" / "own.ndb").write_text(f"Own-Test:0:*:{EICAR.hex()}\n")
    conf = CLAMD.format(port=port, host=HOST, folder=folder)
    (folder / "clamd.conf").write_text(conf)
    command = (program("clamd"), "-c", str(folder / "clamd.conf"))
    return BrokerProcess(command, port, f"{HOST}:{port}", folder, PATIENCE)

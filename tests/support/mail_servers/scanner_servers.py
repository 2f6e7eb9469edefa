"""Scanners on loopback: scripted servers that reply well or badly, and real Rspamd and ClamAV."""

import asyncio
import json
from pathlib import Path
from typing import Any

from bench.servers.bus_servers import BrokerProcess, redis_broker
from bench.servers.ports import HOST, free_port
from tests.support.servers import bus_servers
from tests.support.servers.scripted_server import ConnectionHandler

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-" + b"ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-" + "ANTI-UBE-TEST-EMAIL*C.34X"
NETWORK_MODULES = (  # modules of Rspamd that ask other servers
    *("arc", "asn", "bimi", "dkim", "dkim_signing", "dmarc", "fuzzy_check", "greylist", "hfilter"),
    *("mx_check", "neural", "phishing", "ratelimit", "rbl", "replies", "reputation"),
    *("rspamd_update", "spf", "surbl", "url_redirector"),
)
RSPAMD_CONFIG = """
.include "/etc/rspamd/common.conf"
options {{
    .include "/etc/rspamd/options.inc"
    .include(priority=10) "{folder}/options.inc"
}}
logging {{ type = "console"; level = "warning"; }}
worker "normal" {{ bind_socket = "{host}:{port}"; count = 1; }}
worker "controller" {{
    bind_socket = "{host}:{controller_port}"; count = 1;
    password = "asks-only"; enable_password = "{password}"; secure_ip = "192.0.2.1";
}}
"""
RSPAMD_OPTIONS = """
pidfile = "{folder}/rspamd.pid";
filters = "regexp";
dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
rrd = "";
disable_hyperscan = true;
url_tld = "{folder}/domains";
"""
CLAMD_CONFIG = """
TCPSocket {port}
TCPAddr {host}
LocalSocket {folder}/clamd.sock
DatabaseDirectory {folder}/db
TemporaryDirectory {folder}
Foreground yes
StreamMaxLength 1M
"""
CONTROLLER_PASSWORD = "learn-from-us"  # noqa: S105 - of a test server

START_TIMEOUT = 60.0  # seconds until it listens
REDIS_TIMEOUT = 60.0  # seconds; after it, Rspamd learns a message again that it has learned


def rspamd_reply(score: float, **fields: Any) -> bytes:
    """The HTTP response of Rspamd with this score."""
    result = {
        "is_skipped": False,
        "score": score,
        "required_score": 15.0,
        "action": "no action",
        "symbols": {"OFFER": {"name": "OFFER", "score": score, "description": "An offer"}},
        **fields,
    }
    return http_response(json.dumps(result).encode())


def http_response(body: bytes, status: str = "200 OK") -> bytes:
    """An HTTP response with this body."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def send_and_hang_up(*replies: bytes) -> ConnectionHandler:
    """Read a request, send these replies, and close the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for reply in replies:
            writer.write(reply)
            await writer.drain()

    return handle


async def stay_silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Neither read nor send anything."""
    await asyncio.Event().wait()


def send_endlessly(start: bytes, chunk: bytes) -> ConnectionHandler:
    """Send chunks without end."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(start)
        while True:
            writer.write(chunk)
            await writer.drain()

    return handle


async def read_clamd_request(reader: asyncio.StreamReader) -> bytes:
    """Read a request to clamd and return the scanned bytes."""
    assert await reader.readexactly(10) == b"zINSTREAM\0"
    content = b""
    while size := int.from_bytes(await reader.readexactly(4), "big"):
        content += await reader.readexactly(size)
    return content


def reply_as_clamd(reply: bytes) -> ConnectionHandler:
    """Read a request to clamd and send this reply."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_clamd_request(reader)
        writer.write(reply)
        await writer.drain()

    return handle


def require_program(name: str) -> str:
    """Return the path of a program. Skips the test if it is missing, but fails in CI."""
    return bus_servers.require_program(name, "httptools")


def make_rspamd_processes(folder: Path) -> tuple[BrokerProcess, BrokerProcess, str]:
    """Make processes of Rspamd, without its network modules, and of its Redis.

    Returns Rspamd, Redis and the URL of Rspamd's controller, which learns messages.
    """
    program_path = require_program("rspamd")
    redis = redis_broker(require_program("redis-server"), folder)
    port, controller_port = free_port(), free_port()
    local_folder = folder / "local" / "local.d"
    local_folder.mkdir(parents=True)
    for name in NETWORK_MODULES:
        (local_folder / f"{name}.conf").write_text("enabled = false;\n")
    (local_folder / "redis.conf").write_text(
        f'servers = "{HOST}:{redis.port}";\ntimeout = {REDIS_TIMEOUT};\n'
    )
    (local_folder / "classifier-bayes.conf").write_text("min_learns = 1;\n")
    values = {"folder": folder, "host": HOST, "port": port, "controller_port": controller_port}
    # the whole list takes a minute to read
    (folder / "domains").write_text("com\nexample\nnet\norg\n")
    (folder / "options.inc").write_text(RSPAMD_OPTIONS.format(folder=folder))
    (folder / "rspamd.conf").write_text(
        RSPAMD_CONFIG.format(**values, password=CONTROLLER_PASSWORD)
    )
    folder_options = [f"--var={name}={folder}" for name in ("RUNDIR", "DBDIR", "LOGDIR")]
    command = (program_path, "-i", "-f", "-c", str(folder / "rspamd.conf"), *folder_options)
    config_option = f"--var=LOCAL_CONFDIR={folder / 'local'}"
    process = BrokerProcess(
        (*command, config_option), port, f"http://{HOST}:{port}", folder, START_TIMEOUT, True
    )
    return process, redis, f"http://{HOST}:{controller_port}"


def make_clamd_process(folder: Path) -> BrokerProcess:
    """Make a process of clamd that knows only the signature of the EICAR test file."""
    port = free_port()
    (folder / "db").mkdir()
    (folder / "db" / "own.ndb").write_text(f"Own-Test:0:*:{EICAR.hex()}\n")
    config = CLAMD_CONFIG.format(port=port, host=HOST, folder=folder)
    (folder / "clamd.conf").write_text(config)
    command = (require_program("clamd"), "-c", str(folder / "clamd.conf"))
    return BrokerProcess(command, port, f"{HOST}:{port}", folder, START_TIMEOUT)

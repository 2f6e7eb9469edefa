"""Ports of the servers of tests: no two processes get the same one."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from bench.servers import ports

PROCESS_COUNT, PORT_COUNT = 4, 300
CLAIM_PORTS = f"""
import json, os, sys
from bench.servers import ports
os.getpid = lambda: 88 * int(sys.argv[1])
print(json.dumps([ports.free_port() for _ in range({PORT_COUNT})]), flush=True)
sys.stdin.read()
"""
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
REPOSITORY = Path(ports.__file__).parents[2]


def read_ports(process: subprocess.Popen[bytes]) -> list[int]:
    assert process.stdout
    return list(json.loads(process.stdout.readline()))


def test_no_two_processes_get_the_same_port() -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CLAIM_PORTS, str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=REPOSITORY,
                )
            )
            for number in range(1, PROCESS_COUNT + 1)
        ]
        claimed = [port for process in processes for port in read_ports(process)]
    assert len(set(claimed)) == PROCESS_COUNT * PORT_COUNT
    first_ephemeral, last_ephemeral = map(int, EPHEMERAL_RANGE.read_text().split())
    assert not [port for port in claimed if first_ephemeral <= port <= last_ephemeral]

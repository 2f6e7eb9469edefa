"""`python -m bench.load.connection_attempts SOURCE_IP PORT COUNT RATE`: open connections.

Each connection is read until the server closes it. COUNT is their number, RATE how many begin in
a second; with RATE 0 one begins when the one before has ended. Prints the seconds that they took.
"""

import socket
import struct
import sys
import threading
import time
from contextlib import suppress

from bench.servers.ports import HOST

THREAD_COUNT = 8  # at a fixed rate: a connection that waits doesn't delay the next ones
CONNECT_TIMEOUT = 10.0  # seconds
# Closing sends RST, so that no port stays in TIME_WAIT (socket(7)).
CLOSE_WITH_RESET = struct.pack("ii", 1, 0)
IP_BIND_ADDRESS_NO_PORT = 24  # of Linux: connect() chooses the port (ip(7))


def attempt_connection(source_ip: str, port: int) -> None:
    """Connect from an address of this machine, and read until the server closes."""
    with socket.socket() as connection:
        connection.settimeout(CONNECT_TIMEOUT)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_WITH_RESET)
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((source_ip, 0))
        connection.connect((HOST, port))
        with suppress(ConnectionError):
            while connection.recv(1024):
                pass


def attempt_at_fixed_rate(source_ip: str, port: int, count: int, rate: float) -> float:
    """Open connections at a fixed rate, and return the seconds until the last one has ended."""
    started_at = time.monotonic()

    def attempt_share(first: int) -> None:
        for number in range(first, count, THREAD_COUNT):
            if rate:
                time.sleep(max(0.0, started_at + number / rate - time.monotonic()))
            attempt_connection(source_ip, port)

    threads = [threading.Thread(target=attempt_share, args=(n,)) for n in range(THREAD_COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started_at


def attempt_one_by_one(source_ip: str, port: int, count: int) -> float:
    """Open connections one after the other, and return the seconds that they took."""
    started_at = time.monotonic()
    for _ in range(count):
        attempt_connection(source_ip, port)
    return time.monotonic() - started_at


if __name__ == "__main__":
    source, port_text, count_text, rate_text = sys.argv[1:]
    target_port, attempt_count, per_second = int(port_text), int(count_text), float(rate_text)
    if per_second:
        took = attempt_at_fixed_rate(source, target_port, attempt_count, per_second)
    else:
        took = attempt_one_by_one(source, target_port, attempt_count)
    print(took)  # noqa: T201 - the output

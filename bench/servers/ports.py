"""Ports for the servers of tests and benchmarks."""

import itertools
import os
import socket

HOST = "127.0.0.1"
# The kernel uses ports from 32768 on for outgoing connections.
FIRST, BLOCKS, EACH = 10_000, 88, 250
_ports = itertools.cycle(range(EACH))


def free_port() -> int:
    """Return a port of loopback on which nothing listens, of the block of this process."""
    first = FIRST + os.getpid() % BLOCKS * EACH
    for offset in itertools.islice(_ports, EACH):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, first + offset))
            except OSError:
                continue
            return first + offset
    raise AssertionError(f"no port is free from {first} to {first + EACH}")

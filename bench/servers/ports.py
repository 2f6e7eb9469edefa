"""Ports for the servers of tests and benchmarks."""

import itertools
import os
import socket

HOST = "127.0.0.1"
# The kernel uses ports from 32768 on for outgoing connections.
FIRST_PORT, BLOCK_COUNT, BLOCK_SIZE = 10_000, 88, 250
_next_offsets = itertools.cycle(range(BLOCK_SIZE))


def free_port() -> int:
    """Return a port of loopback on which nothing listens, of the block of this process."""
    first = FIRST_PORT + os.getpid() % BLOCK_COUNT * BLOCK_SIZE
    for offset in itertools.islice(_next_offsets, BLOCK_SIZE):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, first + offset))
            except OSError:
                continue
            return first + offset
    raise AssertionError(f"no port is free from {first} to {first + BLOCK_SIZE}")

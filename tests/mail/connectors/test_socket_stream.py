"""The TCP connection of a connector."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from mail.connectors import socket_stream
from mail.connectors.remote_server import RemoteFailure
from mail.connectors.socket_stream import (
    MAX_DELAY,
    MIN_BYTES_PER_SECOND,
    BoundedReader,
    RemoteConnection,
)
from tests.support.growth import assert_grows_with_size
from tests.support.mail_servers.imap_and_pop3_servers import (
    FakeImapServer,
    remote_server_settings,
)

RESET_TIMEOUT = 20.0  # seconds, less than Linux keeps a half-closed connection


def send_until_window_is_full(sender: socket.socket) -> None:
    """Send until nothing was accepted for a second; the probes of the window are rare then."""
    sender.settimeout(1)
    with suppress(TimeoutError):
        send_without_end(sender)
    sender.settimeout(RESET_TIMEOUT)


def send_without_end(sender: socket.socket) -> None:
    while True:
        sender.sendall(bytes(100_000))


def test_close_after_abort_resets_the_connection_of_a_sending_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = replace(remote_server_settings(FakeImapServer()), port=port)
        connection = RemoteConnection(settings, ["127.0.0.1"])
        client = connection.connect()
        sender, _ = listener.accept()
        with sender:
            send_until_window_is_full(sender)
            connection.abort()
            with pytest.raises(RemoteFailure, match=r"^The run was cancelled\.$"):
                BoundedReader(connection, client).read_exactly(1)
            with suppress(OSError):
                while client.recv(1 << 16):
                    pass
            connection.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_without_end(sender)


def test_server_that_sends_just_enough_to_avoid_the_timeout_is_too_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket_stream, "MAX_DELAY", 0.2)
    server, client = socket.socketpair()
    with server, client:
        connection = connection_with_secret("x")
        reader = BoundedReader(connection, client)
        sent_sizes: list[int] = []

        def send_slowly() -> None:
            with suppress(OSError):
                while server.send(b"x"):
                    sent_sizes.append(1)
                    time.sleep(0.1)

        sender = threading.Thread(target=send_slowly)
        sender.start()
        try:
            with pytest.raises(RemoteFailure, match=r"^The server responds too slowly\.$"):
                reader.read_exactly(1000)
        finally:
            client.close()
            server.close()
            sender.join()
        assert len(sent_sizes) < 100


def test_fast_bytes_make_up_for_earlier_delays() -> None:
    connection = connection_with_secret("x")
    for _ in range(3):
        connection.count_delay(MAX_DELAY / 2, 1)
        connection.count_delay(1.0, round(MIN_BYTES_PER_SECOND * MAX_DELAY / 2))
    connection.count_delay(MAX_DELAY / 2, 1)
    with pytest.raises(RemoteFailure):
        connection.count_delay(MAX_DELAY / 2 + 1.0, 1)


def connection_with_secret(secret: str) -> RemoteConnection:
    return RemoteConnection(replace(remote_server_settings(FakeImapServer()), secret=secret), [])


@pytest.mark.parametrize("secret", [" x", "x  y", "\tx\t"])
@pytest.mark.parametrize("text", [b" ", b"x ", b"x"])
def test_secrets_are_removed_in_linear_time(secret: str, text: bytes) -> None:
    connection = connection_with_secret(secret)

    def remove_secrets(size: int) -> Callable[[], object]:
        return lambda: connection.printable_text_without_secrets(text * size)

    assert_grows_with_size(remove_secrets, large_size=1 << 15)


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        (" open  sesame ", "with open\t sesame", "with …"),
        (" open  sesame ", "with OPEN \x01 SESAME!", "with …!"),
        ("sesame", "x" * 298 + " sesame", "x" * 298 + " …"),
        ("sesame", "sesame " * 1000 + "sesa", ("… " * 150).rstrip()),
    ],
)
def test_secrets_with_other_white_space_are_removed(secret: str, text: str, expected: str) -> None:
    assert connection_with_secret(secret).printable_text_without_secrets(text) == expected

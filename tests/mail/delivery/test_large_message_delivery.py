"""Large messages on their way: every byte arrives, and nothing is left in the spool."""

import base64
import os
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mail.authentication import arc
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dns_queries import MessageDns
from mail.delivery.listener_backend import LocalBackend
from mail.mime.parser import MAX_PARTS
from mail.smtp import lmtp
from mail.storage import header_prepend
from models.errors import OverQuota
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.accounts.user_operations import run
from tests.support.mail.forwarding_addresses import (
    FORWARD_TARGET,
    add_forwarding_address,
    set_account_forwarding,
)
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.signed_messages import pair, signed
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.mail_servers.queue_worker import relay, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.sieve_operations import put

_PIECE = re.compile(r"incoming-1\.[0-9a-f]{64}(\.zst)?")
pytestmark = pytest.mark.usefixtures("examined")
CAROL = "carol@far.example"
FILE = base64.encodebytes(bytes(range(256)) * 5000).replace(b"\n", b"\r\n")
ATTACHED = (
    b"Subject: File\r\nBcc: eve@else.example\r\nContent-Type: application/pdf\r\n"
    b"Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n" + FILE
)
LETTERS = {
    "with a file": ATTACHED,
    "without a field": b" folded: x\r\nno field\r\n\r\n" + FILE,
    "of too many parts": (
        b"Subject: Parts\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        + b"--b\r\n\r\nx\r\n" * (MAX_PARTS + 1) + b"--b--\r\n" + FILE
    ),
    "with dots": b"Subject: Dots\r\n\r\n" + b".\r\n..a\r\nb.\r\n" * 150_000,
}  # fmt: skip


@pytest.fixture
async def neighbour(world: Environment, tmp_path: Path) -> AsyncIterator[Neighbour]:
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()
    await listener.close(1)
    assert not list((tmp_path / "spool").iterdir())


async def hand(neighbour: Neighbour, raw: bytes, to: str = "ada@example.org") -> str:
    await neighbour.begin(to, sender=CAROL)
    dotted = raw.replace(b"\n.", b"\n..")
    neighbour.send((b"." if raw.startswith(b".") else b"") + dotted + b".\r\n")
    return (await neighbour.hear())[:9]


async def taken(server: Server) -> bytes:
    async def came() -> bool:
        return bool(server.mails)

    await until(came)
    return server.mails.pop().raw


def roomy() -> Server:
    return Server(features={"enable_SMTPUTF8": True, "data_size_limit": None})


@pytest.mark.parametrize("kind", LETTERS)
async def test_it_is_stored_and_sent_on_as_it_came(
    ada: Client, neighbour: Neighbour, kind: str, tmp_path: Path
) -> None:
    raw = LETTERS[kind]
    await set_account_forwarding(ada, FORWARD_TARGET)
    async with listening(roomy()) as there, working(ada.world, relay(there)):
        assert await hand(neighbour, raw) == "250 2.0.0"
        assert not list((tmp_path / "spool").iterdir())
        out = await taken(there)
    raw = (b"\r\n" if raw.startswith(b" ") else b"") + raw  # which would go on with a field of ours
    bare = raw.replace(b"Bcc: eve@else.example\r\n", b"")
    assert out == b"Delivered-To: ada@example.org\r\n" + bare
    ((row, whole),) = (await stored_messages_by_path(ada)).values()
    assert whole == (
        b"Return-Path: <carol@far.example>\r\nDelivered-To: ada@example.org\r\n"
        b"X-Original-Rcpt: ada@example.org\r\n" + raw
    )
    assert row.size == len(whole)


async def test_its_header_is_edited(ada: Client, neighbour: Neighbour, tmp_path: Path) -> None:
    await put(
        ada,
        'require ["editheader", "fileinto", "copy", "mailbox"];'
        'fileinto :create "Bare"; addheader "X-Mine" "1"; redirect :copy "dave@far.example"; keep;',
    )
    async with listening(roomy()) as there, working(ada.world, relay(there)):
        assert await hand(neighbour, ATTACHED) == "250 2.0.0"
        assert not list((tmp_path / "spool").iterdir())
        out = await taken(there)
    bare = ATTACHED.replace(b"Bcc: eve@else.example\r\n", b"")
    assert out == b"Delivered-To: ada@example.org\r\nX-Mine: 1\r\n" + bare
    found = {path: whole for path, (_, whole) in (await stored_messages_by_path(ada)).items()}
    assert found["INBOX"].endswith(b"\r\nX-Mine: 1\r\n" + ATTACHED)
    assert found["Bare"].endswith(b"Rcpt: ada@example.org\r\n" + ATTACHED)


async def test_its_seal_holds(ada: Client, neighbour: Neighbour, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    key = folder / "s._domainkey.example.org.pem"
    key.write_bytes(pair()[0])
    key.chmod(0o600)
    outside = zone({f"s._domainkey.{one}": pair()[1] for one in ("far.example", "example.org")})
    async with asking(outside) as place, listening(roomy()) as there:
        use_dns_zone(ada.world, outside, authentication_check="all", arc_keys=folder)
        await add_forwarding_address(ada.world, "list", FORWARD_TARGET)
        async with working(ada.world, relay(there)):
            raw = signed(b"From: a@far.example\r\n" + ATTACHED)
            assert await hand(neighbour, raw, "list@example.org") == "250 2.0.0"
            out = await taken(there)
        found = await arc.check_chain(MessageDns(place), SignedMessage.from_bytes(out), 0)
    assert (found.result, found.sealer_domains) == (AuthResult.PASS, ["example.org"])
    assert b"\r\r" not in out[:2000]  # a list of names that takes several lines
    assert b"dkim=pass" in found.arc_sets[0].results.raw


@pytest.mark.parametrize("quota", [None, 1_000_000])
async def test_files_go_as_soon_as_they_are_stored_or_refused(
    ada: Client, root: Client, world: Environment, tmp_path: Path, quota: int | None
) -> None:
    await put(ada, 'require "editheader"; addheader "X-Mine" "1"; redirect "dave@far.example";')
    if quota:
        await put(ada, 'require "editheader"; addheader "X-Mine" "1"; keep;')
        whose, few = {"usernames": ["ada"]}, {"quota": quota}
        assert (await run(root, "userUpdate", users=whose, set=few))["errors"] == []
    path = tmp_path / "incoming-1"
    path.write_bytes(ATTACHED)
    house = LocalBackend(world)
    (outcome,) = await house.deliver(
        path, [await house.accept_recipient(ada.address, CAROL)], CAROL
    )
    assert isinstance(outcome, OverQuota) is bool(quota)
    left = [name for name in os.listdir(tmp_path) if name.startswith("incoming-1")]  # noqa: PTH208 - what there is
    assert [one for one in left if not _PIECE.fullmatch(one)] == ["incoming-1"]


async def test_a_file_beside_goes_with_what_is_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "incoming-1"
    path.write_bytes(b"Subject: a\r\n\r\nb")
    with ExitStack() as files:
        made = await header_prepend.replace_beginning(path, b"X: y\r\n", 12, files)
        assert isinstance(made, Path)
        assert made.read_bytes() == b"X: y\r\n\r\nb"
        assert made.name.startswith("incoming-1.")  # so that a crash leaves nothing
        made.with_name(f"{made.name}.piece").write_bytes(b"")
    assert [name for name in os.listdir(tmp_path) if "incoming" in name] == [path.name]  # noqa: PTH208

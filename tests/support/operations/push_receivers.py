"""Receivers of pushes: real ones on loopback, and a browser that can read what it is sent."""

import asyncio
import base64
import json
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from graph.types import global_ids
from mail.network.outbound_http import NetworkPolicy
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from models.runtime.environment import CommittedOptions, Environment
from resolvers.notifications.push_worker import PushWorker, start_pushes
from tests.conftest import Client, raw_message
from tests.support.servers.webhook_receiver import Got, Receiver

SHOWN = """channels { id kind active title text senders sendersRegex onlyPriority evaluatePriority
  mailboxes { path } lastError lastPushAt user { username } }"""
SET = f"""mutation ($input: PushChannelSetInput!) {{ pushChannelSet(input: $input) {{ {SHOWN}
  errors {{ __typename code path index message ... on ValidationError {{ constraint }} }} }} }}"""
LIST = """{ viewer { user { pushChannels { id kind active lastError lastPushAt
  mailboxes { path } } } } }"""


def loose(world: Environment, **more: Any) -> None:
    """Let pushes go to this machine."""
    options = replace(world.options, **{"push_private": True, **more})
    world.apply_options(CommittedOptions(options, world.options_position))


def worker_of(world: Environment, **gate: Any) -> PushWorker:
    """A worker, as a process has one."""
    return PushWorker(world, global_ids.encode, NetworkPolicy(**gate))


async def pump(worker: PushWorker) -> None:
    """Look, and push until nothing is under way."""
    while True:
        await start_pushes(worker)
        if not worker.served and not worker.has_more:
            return
        await asyncio.gather(*(each.task for each in worker.served.values()))


async def set_(client: Client, **given: Any) -> Any:
    """The payload of channels that are set."""
    return (await client(SET, input=given))["pushChannelSet"]


async def made(client: Client, **given: Any) -> str:
    """The id of a channel that is set."""
    payload = await set_(client, **given)
    assert payload["errors"] == []
    key: str = payload["channels"][0]["id"]
    return key


async def channel(client: Client) -> Any:
    """The only channel of a client."""
    (one,) = (await client(LIST))["viewer"]["user"]["pushChannels"]
    return one


async def come(
    client: Client, subject: str = "Hello", *, into: str = "INBOX", **headers: str
) -> message_insert.InsertedMessage:
    """Deliver a message from outside, into a folder as a filter would."""
    letter = await received_messages.read_message(raw_message(subject, **headers))
    to = await address_resolution.load_recipient(client.world, client.address)
    sender = "carol@example.com"
    there = message_insert.MessagePlacement(
        to.user_id,
        (await client.box(into)).id,
        client.world.now(),
        envelope_from=sender,
        envelope_to=[to.address],
    )
    return await received_messages.store_for_recipient(
        client.world, letter, to, sender, placement=there
    )


def http(receiver: Receiver, **more: Any) -> dict[str, Any]:
    """An input that leads there."""
    return {"kind": "HTTP", "endpoint": f"http://127.0.0.1:{receiver.port}/topic", **more}


def form(got: Got) -> dict[str, str]:
    """The fields of a form."""
    return dict(parse_qsl(got.raw.decode(), keep_blank_values=True, strict_parsing=True))


def texts(receiver: Receiver) -> list[str]:
    """What was told, in its order."""
    return [got.raw.decode() for got in receiver.got]


@dataclass
class Browser:
    """One that has subscribed: it alone has the key that opens what it is sent."""

    port: int
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    auth: bytes = b"sixteen bytes it"

    @property
    def subscription(self) -> dict[str, Any]:
        """What PushSubscription.toJSON() says."""
        public = self.key.public_key()
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return {
            "endpoint": f"https://127.0.0.1:{self.port}/push/secret-path",
            "expirationTime": None,
            "keys": {"p256dh": bare(point), "auth": bare(self.auth)},
        }

    def read(self, got: Got) -> Any:
        """What the service worker is handed."""
        assert got.headers["content-encoding"] == "aes128gcm"
        raw = http_ece.decrypt(got.raw, private_key=self.key, auth_secret=self.auth)
        return json.loads(raw)


def bare(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw_of(text: str) -> bytes:
    """What such base64url holds."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

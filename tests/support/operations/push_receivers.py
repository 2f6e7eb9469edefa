"""Receivers of push notifications on loopback, and a Web Push subscriber that decrypts them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl

import http_ece
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from graph.types import global_ids
from mail.network.outbound_http import NetworkPolicy
from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from models.runtime.environment import CommittedOptions, Environment
from resolvers.notifications.push_worker import PushWorker, start_pushes_and_return_pause_seconds
from tests.conftest import GraphQLClient, raw_message
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)

PUSH_CHANNELS_PAYLOAD = """pushChannels { id kind active title text senders sendersRegex
  highPriorityOnly passPriority mailboxes { path } lastError lastPushAt user { username } }"""
PUSH_CHANNEL_SET = f"""mutation ($input: PushChannelSetInput!) {{ pushChannelSet(input: $input) {{
  {PUSH_CHANNELS_PAYLOAD}
  errors {{ __typename code path message ... on ValidationError {{ constraint }} }} }} }}"""
PUSH_CHANNELS_QUERY = """{ viewer { user { pushChannels { id kind active lastError lastPushAt
  mailboxes { path } } } } }"""
PUBLIC_KEY_QUERY = "{ vapidPublicKey }"


def allow_local_pushes(environment: Environment, **changes: Any) -> None:
    """Allow push notifications to this machine."""
    options = replace(environment.options, **{"push_allow_private_networks": True, **changes})
    environment.use_options_unless_outdated(CommittedOptions(options, environment.options_position))


def make_push_worker(environment: Environment, **policy_options: Any) -> PushWorker:
    """Make a push worker, as a process has one."""
    return PushWorker(environment, global_ids.encode, NetworkPolicy(**policy_options))


async def push_until_idle(worker: PushWorker) -> None:
    """Push until nothing is due and no push is running."""
    while True:
        await start_pushes_and_return_pause_seconds(worker)
        if not worker.served and not worker.has_more:
            return
        await asyncio.gather(*(push.task for push in worker.served.values()))


async def run_push_channel_set(client: GraphQLClient, **fields: Any) -> Any:
    """Run pushChannelSet and return its payload."""
    return (await client(PUSH_CHANNEL_SET, input=fields))["pushChannelSet"]


async def create_push_channel(client: GraphQLClient, **fields: Any) -> str:
    """Create a push channel and return its id."""
    payload = await run_push_channel_set(client, **fields)
    assert payload["errors"] == []
    channel_id: str = payload["pushChannels"][0]["id"]
    return channel_id


async def load_push_channel(client: GraphQLClient) -> Any:
    """Read the only push channel of a user."""
    (only_channel,) = (await client(PUSH_CHANNELS_QUERY))["viewer"]["user"]["pushChannels"]
    return only_channel


async def deliver_to_mailbox(
    client: GraphQLClient,
    subject: str = "Hello",
    *,
    mailbox_path: str = "INBOX",
    **header_fields: str,
) -> message_insert.InsertedMessage:
    """Deliver a message from another server to a mailbox, as a filter does."""
    message = await received_messages.parse_storable_message(raw_message(subject, **header_fields))
    recipient = await address_resolution.load_recipient_below_limits(
        client.environment, client.address
    )
    sender = "carol@example.com"
    placement = message_insert.MessagePlacement(
        recipient.user_id,
        (await client.load_mailbox(mailbox_path)).id,
        client.environment.now(),
        envelope_from=sender,
        envelope_to=[recipient.address],
    )
    return await received_messages.store_once_for_recipient(
        client.environment, message, recipient, sender, placement=placement
    )


def http_channel_input(receiver: WebhookReceiver, **fields: Any) -> dict[str, Any]:
    """The input of a push channel that sends to this receiver by HTTP."""
    return {"kind": "HTTP", "endpoint": f"http://127.0.0.1:{receiver.port}/topic", **fields}


def decode_form(request: ReceivedRequest) -> dict[str, str]:
    """Decode the form fields of a request."""
    return dict(parse_qsl(request.raw.decode(), keep_blank_values=True, strict_parsing=True))


def received_texts(receiver: WebhookReceiver) -> list[str]:
    """The bodies of the received requests, in order."""
    return [request.raw.decode() for request in receiver.requests]


@dataclass
class PushSubscriber:
    """A Web Push subscriber, which has the key to decrypt notifications."""

    port: int
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    auth: bytes = b"sixteen bytes it"

    @property
    def subscription(self) -> dict[str, Any]:
        """The result of PushSubscription.toJSON() (Push API)."""
        public = self.key.public_key()
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return {
            "endpoint": f"https://127.0.0.1:{self.port}/push/secret-path",
            "expirationTime": None,
            "keys": {"p256dh": encode_base64url(point), "auth": encode_base64url(self.auth)},
        }

    def decrypt_push(self, request: ReceivedRequest) -> Any:
        """Decrypt a notification (RFC 8291)."""
        assert request.headers["content-encoding"] == "aes128gcm"
        raw = http_ece.decrypt(request.raw, private_key=self.key, auth_secret=self.auth)
        return json.loads(raw)


def encode_base64url(raw: bytes) -> str:
    """Encode as Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_base64url(text: str) -> bytes:
    """Decode Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    async with run_webhook_receiver() as http_receiver:
        allow_local_pushes(
            environment, pushover_url=f"http://127.0.0.1:{http_receiver.port}/1/messages.json"
        )
        yield http_receiver

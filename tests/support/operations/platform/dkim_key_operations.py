"""DKIM keys by GraphQL, and verification of signed messages."""

import base64
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import dkim

from mail.authentication.dkim import AuthResult, SignedMessage, verify_signatures
from mail.authentication.dns_queries import MessageDns
from tests.conftest import GraphQLClient
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.operations.domain_operations import ERRORS

DKIM_KEY_FIELDS = """id domain selector description algorithm keySize fingerprint fingerprintSha256
  publicKey state dnsTxt { name value } createdAt activatedAt retiredAt"""
DNS_STATES_QUERY = "{ dkimKeys { nodes { selector dnsState } } }"


def _mutation(name: str, kind: str, payload: str) -> str:
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {payload} {ERRORS} }} }}"


DKIM_KEYS_PAYLOAD = f"dkimKeys {{ {DKIM_KEY_FIELDS} }} warnings {{ code message path }}"
DKIM_KEY_SET = _mutation("dkimKeySet", "DkimKeySetInput", DKIM_KEYS_PAYLOAD)
DKIM_KEY_ROTATE = _mutation("dkimKeyRotate", "DkimKeyRotateInput", DKIM_KEYS_PAYLOAD)
DKIM_KEY_ACTIVATE = _mutation("dkimKeyActivate", "DkimKeyActivateInput", DKIM_KEYS_PAYLOAD)
DKIM_KEY_COPY = _mutation("dkimKeyCopy", "DkimKeyCopyInput", DKIM_KEYS_PAYLOAD)
DKIM_KEY_DELETE = _mutation("dkimKeyDelete", "DkimKeyDeleteInput", "deletedIds")
DKIM_KEY_QUERY = f"query ($by: DkimKeyRef!) {{ dkimKey(by: $by) {{ {DKIM_KEY_FIELDS} }} }}"
DKIM_KEYS_QUERY = f"""
query ($filter: DkimKeyFilter, $first: Int, $after: String, $last: Int, $before: String) {{
  dkimKeys(filter: $filter, first: $first, after: $after, last: $last, before: $before) {{
    nodes {{ {DKIM_KEY_FIELDS} }} totalCount pageInfo {{ hasNextPage endCursor }} }} }}
"""


def domain_refs(*names: str) -> list[dict[str, Any]]:
    """Return references to domains by name; `*` means all domains."""
    return [{"all": True} if name == "*" else {"name": name} for name in names]


async def create_dkim_key(
    client: GraphQLClient, domain: str = "example.org", **input_fields: Any
) -> Any:
    """Create a DKIM key and return it. The domain `*` means all domains."""
    key_input = {"domains": domain_refs(domain), **input_fields}
    payload = (await client(DKIM_KEY_SET, input=key_input))["dkimKeySet"]
    assert payload["errors"] == [], payload
    (created,) = payload["dkimKeys"]
    return created


async def create_key_of_each_algorithm(
    client: GraphQLClient, domain: str = "example.org"
) -> list[Any]:
    """Create a key of each algorithm."""
    return [
        await create_dkim_key(client, domain, selector="r"),
        await create_dkim_key(client, domain, selector="e", algorithm="ED25519"),
    ]


def dkim_txt_records(keys: Iterable[Any]) -> dict[str, str]:
    """The TXT records of DKIM keys by name."""
    return {dkim_key["dnsTxt"]["name"]: dkim_key["dnsTxt"]["value"] for dkim_key in keys}


def make_dkim_zone(keys: Iterable[Any]) -> DnsZoneServer:
    """A DNS server with the TXT records of these keys."""
    return make_dns_zone(dkim_txt_records(keys))


def use_dns_server(client: GraphQLClient, server_address: str) -> None:
    """Let the environment of a client ask this DNS server."""
    options = replace(client.environment.options, dns_resolver=server_address)
    object.__setattr__(client.environment, "options", options)


async def verify_with_merganser(
    raw: bytes, records: dict[str, str], now: int
) -> list[tuple[str, str, AuthResult]]:
    """Verify the signatures of a message by Merganser.

    Returns domain, algorithm and result of each signature, from top to bottom.
    """
    async with run_dns_zone(make_dns_zone(records)) as server_address:
        signatures = await verify_signatures(
            MessageDns(server_address), SignedMessage.from_bytes(raw), now, "example.org"
        )
    return [(signature.domain, signature.algorithm, signature.result) for signature in signatures]


def verify_with_dkimpy(raw: bytes, records: dict[str, str]) -> list[bool]:
    """Verify each signature of a message by dkimpy."""

    def find_record(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        return records.get(name.decode().rstrip("."), "").encode()

    signature_count = raw.partition(b"\r\n\r\n")[0].lower().count(b"dkim-signature:")
    return [
        bool(dkim.DKIM(raw).verify(idx=nth, dnsfunc=find_record)) for nth in range(signature_count)
    ]


def decode_public_key(public: str) -> bytes:
    """Decode a public key from Base64."""
    return base64.b64decode(public)


async def list_keys(client: GraphQLClient, **arguments: Any) -> list[Any]:
    page: list[Any] = (await client(DKIM_KEYS_QUERY, **arguments))["dkimKeys"]["nodes"]
    return page


async def load_states_by_selector(client: GraphQLClient) -> dict[str, str]:
    """Return the states of all visible keys by selector."""
    return {key["selector"]: key["state"] for key in await list_keys(client)}


async def load_signing_key(client: GraphQLClient, domain: str) -> Any:
    return (await client(DKIM_KEY_QUERY, by={"domain": domain_refs(domain)[0]}))["dkimKey"]

"""How tests ask for keys that sign, and what becomes of what they have signed."""

import base64
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import dkim

from mail.authentication.dkim import AuthResult, SignedMessage, verify_signatures
from mail.authentication.dns_queries import MessageDns
from tests.conftest import Client
from tests.support.mail_servers.dns_zone_server import Zone, asking, zone
from tests.support.operations.domain_operations import ERRORS

KEY = """id domain selector description algorithm keySize fingerprint fingerprintSha256 publicKey
  state dnsTxt { name value } createdAt activatedAt retiredAt"""


def _mutation(name: str, kind: str, payload: str) -> str:
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {payload} {ERRORS} }} }}"


KEYS = f"keys {{ {KEY} }} warnings {{ code message path }}"
SET = _mutation("dkimKeySet", "DkimKeySetInput", KEYS)
ROTATE = _mutation("dkimKeyRotate", "DkimKeyRotateInput", KEYS)
ACTIVATE = _mutation("dkimKeyActivate", "IdsInput", KEYS)
COPY = _mutation("dkimKeyCopy", "DkimKeyCopyInput", KEYS)
REMOVE = _mutation("dkimKeyDelete", "DkimKeyDeleteInput", "deletedIds")
ONE = f"query ($by: DkimKeyRef!) {{ dkimKey(by: $by) {{ {KEY} }} }}"
LIST = f"""
query ($query: String, $first: Int, $after: String, $last: Int, $before: String) {{
  dkimKeys(query: $query, first: $first, after: $after, last: $last, before: $before) {{
    nodes {{ {KEY} }} totalCount pageInfo {{ hasNextPage endCursor }} }} }}
"""


async def key(client: Client, **given: Any) -> Any:
    """A new key; of example.org, where nothing else is said."""
    answer = (await client(SET, input={"domains": ["example.org"], **given}))["dkimKeySet"]
    assert answer["errors"] == [], answer
    (made,) = answer["keys"]
    return made


async def both(client: Client, domain: str = "example.org") -> list[Any]:
    """A key of each algorithm."""
    return [
        await key(client, domains=[domain], selector="r"),
        await key(client, domains=[domain], selector="e", algorithm="ED25519"),
    ]


def texts(keys: Iterable[Any]) -> dict[str, str]:
    """The records of keys, by name."""
    return {one["dnsTxt"]["name"]: one["dnsTxt"]["value"] for one in keys}


def published(keys: Iterable[Any]) -> Zone:
    """A name server that holds their records."""
    return zone(texts(keys))


def asks(client: Client, place: str) -> None:
    """Let the world ask this name server."""
    options = replace(client.world.options, dns_resolver=place)
    object.__setattr__(client.world, "options", options)


async def by_us(raw: bytes, records: dict[str, str], now: int) -> list[tuple[str, str, AuthResult]]:
    """What our verifier says: domain, algorithm, result of each signature, the topmost first."""
    async with asking(zone(records)) as place:
        found = await verify_signatures(
            MessageDns(place), SignedMessage.from_bytes(raw), now, "example.org"
        )
    return [(one.domain, one.algorithm, one.result) for one in found]


def by_dkimpy(raw: bytes, records: dict[str, str]) -> list[bool]:
    """What dkimpy says of each signature."""

    def ask(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        return records.get(name.decode().rstrip("."), "").encode()

    many = raw.partition(b"\r\n\r\n")[0].lower().count(b"dkim-signature:")
    return [bool(dkim.DKIM(raw).verify(idx=nth, dnsfunc=ask)) for nth in range(many)]


def bare(public: str) -> bytes:
    return base64.b64decode(public)

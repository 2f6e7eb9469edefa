"""ARC seals of messages that are sent on, with the key of the domain that sends them (RFC 8617)."""

import asyncio
import base64
import hashlib
import logging
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import arc, signing_keys
from mail.authentication.arc import Chain, Link
from mail.authentication.dkim import Message, Result, header_digest, read
from mail.authentication.dns_queries import Names
from mail.authentication.header_fields import tags
from mail.authentication.public_keys import LONGEST, SHORTEST, is_domain
from mail.authentication.signature_fields import field_of, folded, proven
from models.observability import metrics
from models.runtime.environment import World

log = logging.getLogger(__name__)

SEALS = metrics.counter(
    "merganser_arc_seals",
    "Messages sent on in the name of a domain with a key: sealed; chain, the chain that they came "
    "with is broken; dns, it could not be checked; key, the key cannot be used.",
    "outcome",
)
BITS = 2048  # of a new key
PEM_MAX = 16 << 10  # bytes of a file with a key
OTHERS = 0o077  # file permissions of group and others
BETWEEN = "._domainkey."
SIGNED = (  # all fields with these names are signed
    *("from", "reply-to", "sender", "subject", "date", "to", "cc", "message-id"),
    *("in-reply-to", "references", "mime-version", "content-type", "content-transfer-encoding"),
    *("content-id", "content-description", "list-id", "list-unsubscribe", "list-post"),
    *("resent-from", "resent-to", "resent-date", "resent-message-id", "dkim-signature"),
)


class Unusable(Exception):
    """A key that can't seal. The text gives the reason and nothing of the key."""


@dataclass(frozen=True, slots=True)
class Key:
    """An RSA key with the selector and domain of its DNS record."""

    selector: str
    domain: str
    key: RSAPrivateKey

    def sign(self, digest: bytes) -> bytes:
        """Sign a SHA-256 digest."""
        return self.key.sign(digest, PKCS1v15(), Prehashed(SHA256()))


async def sealed(world: World, source: bytes | Path, domain: str, results: str | None) -> bytes:
    """The ARC fields to put before a message that a domain sends on; empty without a key.

    `authentication_results` are the results of the message, as in Authentication-Results. A
    message is not sealed if its chain is broken or can't be checked now. It never raises.
    """
    try:
        key = await _key(world, domain)
    except (Unusable, ValueError, OSError) as problem:
        SEALS.add("key")
        log.warning("not sealed: %s", problem, extra={"domain": domain})
        return b""
    if key is None:
        return b""
    message = await Message.whole(source)
    now = int(world.now().timestamp())
    found = await arc.chain(Names(world.options.dns_resolver), message, now)
    if found.result not in (Result.NONE, Result.PASS) or len(found.links) >= arc.MOST:
        SEALS.add("dns" if found.result is Result.TEMPERROR else "chain")
        return b""
    await message.make_hashes(["relaxed"])
    SEALS.add("sealed")
    said = _said(results) or [world.options.hostname, "none"]
    return await asyncio.to_thread(_made, key, message, found, (said, now))


async def _key(world: World, domain: str) -> Key | None:
    """The key of a domain in the key folder, else its DKIM key; None if it has no RSA key."""
    folder = world.options.arc_keys
    if folder is not None:
        found = await asyncio.to_thread(key_of, folder, on_wire(domain))
        if found is not None:
            return found
    for each in await signing_keys.signers(world, domain):
        if isinstance(each.key.key, RSAPrivateKey):  # others are rarely understood in seals
            return Key(each.selector, each.domain, each.key.key)
    return None


def _said(results: str | None) -> list[str]:
    """Merge results of several lines into one list: a server name, then the results."""
    parts = [" ".join(line.split()).split("; ") for line in (results or "").splitlines()]
    return [*parts[0], *(one for line in parts[1:] for one in line[1:])] if parts else []


def on_wire(domain: str) -> str:
    """The domain as A-labels in lower case. Raises ValueError if it has no such form."""
    return ascii_domain(domain).lower()


def key_of(folder: Path, domain: str) -> Key | None:
    """Load the key of a domain from the file `selector._domainkey.domain.pem` in the folder.

    Of several files the last by name is used. Returns None without a file; raises
    UnusableSealKey or OSError.
    """
    ends = f"{BETWEEN}{domain}.pem"
    there = sorted(each for each in folder.iterdir() if each.name.endswith(ends))
    if not there or not is_domain(domain):
        return None
    return Key(there[-1].name.removesuffix(ends), domain, loaded(there[-1]))


def loaded(path: Path) -> RSAPrivateKey:
    """Load the key in a file. Raises UnusableSealKey or OSError."""
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & OTHERS:
        raise Unusable(f"others may read {path.name}")
    if status.st_size > PEM_MAX:
        raise Unusable(f"{path.name} is too large")
    return _loaded(path, status.st_mtime_ns)


@lru_cache(maxsize=100)
def _loaded(path: Path, _changed: int) -> RSAPrivateKey:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Unusable(f"{path.name} holds no key that can be read") from None
    if not isinstance(key, RSAPrivateKey) or not SHORTEST <= key.key_size <= LONGEST:
        raise Unusable(f"{path.name} holds no RSA key of {SHORTEST} to {LONGEST} bits")
    return key


def new_key() -> str:
    """Generate an RSA key and return it as PEM."""
    from cryptography.hazmat.primitives import serialization as forms  # noqa: PLC0415

    key = generate_private_key(65537, BITS)
    how = forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    return key.private_bytes(*how).decode()


def record(key: RSAPrivateKey) -> str:
    """The TXT record with the public key."""
    from cryptography.hazmat.primitives import serialization as forms  # noqa: PLC0415

    how = forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(*how)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


def _made(key: Key, message: Message, found: Chain, said: tuple[list[str], int]) -> bytes:
    """Make the three fields of the next ARC set, the seal first.

    `results_and_time` are the authentication results and the time in seconds since 1970.
    """
    results, now = said
    number = len(found.links) + 1
    first = field_of(arc.RESULTS, [f"i={number}", *results])
    whose = [f"d={key.domain}", f"s={key.selector}", f"t={now}"]
    body = base64.b64encode(message.body_hash("relaxed")).decode()
    signed = folded([each.name for each in message.fields if each.name in SIGNED])
    head = [f"i={number}", "a=rsa-sha256", "c=relaxed/relaxed", *whose, f"h={signed}", f"bh={body}"]
    bare = field_of(arc.SIGNATURE, [*head, "b="])
    signature = read(bare, {**tags(bare.value), "b": "AA=="})
    second = proven(bare, key.sign, header_digest(message, signature))
    head = [f"i={number}", "a=rsa-sha256", f"cv={found.result.value}", *whose]
    seal = field_of(arc.SEAL, [*head, "b="])
    whole = arc.sealed_bytes([*found.links, Link(first, second, seal)])
    third = proven(seal, key.sign, hashlib.sha256(whole).digest())
    return third.raw + second.raw + first.raw

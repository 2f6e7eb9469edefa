"""Metadata and keys of identity providers (OpenID Connect Discovery 1.0), cached for each process.

All URLs are fetched as those of webhooks: no private networks, limited time and size.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from mail.network.outbound_http import (
    HttpRequestFailed,
    HttpResponse,
    NetworkPolicy,
    get_and_read,
    parse_http_target,
    post_and_read,
)
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.database import Database
from resolvers.identity_providers.errors import ProviderFailure

DISCOVERY_PATH = "/.well-known/openid-configuration"
MAX_METADATA_BYTES = 256 << 10
MAX_KEYS = 100
CACHE_LIFETIME = timedelta(minutes=10)
STALE_LIFETIME = timedelta(hours=1)  # if the provider can't be reached
FAILURE_LIFETIME = timedelta(seconds=15)
REFRESH_INTERVAL = timedelta(seconds=30)  # between two reads because of an unknown key
MAX_CACHED_ISSUERS = 256
# Signatures of the provider's private key. Never `none`, and no HMAC: its key is the client secret.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
OK = 200
PUBLIC_KEY_TYPES = ("RSA", "EC", "OKP")


class ProviderMetadata(NamedTuple):
    """The endpoints of a provider."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    sends_issuer: bool  # in authorization responses (RFC 9207)
    token_auth_methods: frozenset[str]
    challenge_methods: frozenset[str] | None  # of PKCE; None: not stated
    supports_logout: bool  # back-channel logout

    @classmethod
    def from_document(cls, issuer: str, document: Mapping[str, Any]) -> "ProviderMetadata":
        """Return the metadata of a discovery document. Raises ProviderFailure.

        Below an https issuer all endpoints must be https.
        """
        if document.get("issuer") != issuer:
            raise ProviderFailure("The discovery document names another issuer.")
        endpoints = {
            name: _endpoint(issuer, document, name)
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
        }
        has_userinfo = document.get("userinfo_endpoint") is not None
        challenge_methods = document.get("code_challenge_methods_supported")
        return cls(
            **endpoints,
            userinfo_endpoint=_endpoint(issuer, document, "userinfo_endpoint")
            if has_userinfo
            else None,
            sends_issuer=document.get("authorization_response_iss_parameter_supported") is True,
            token_auth_methods=_texts(
                document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            ),
            challenge_methods=None if challenge_methods is None else _texts(challenge_methods),
            supports_logout=document.get("backchannel_logout_supported") is True,
        )


def _endpoint(issuer: str, document: Mapping[str, Any], name: str) -> str:
    """Return the URL of an endpoint. Raises ProviderFailure if it is none."""
    url = document.get(name)
    problem = ProviderFailure(f"The discovery document has no valid {name}.")
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or "#" in url:
        raise problem
    try:
        parts = urlsplit(url)
    except ValueError as error:  # such as an unclosed bracket
        raise problem from error
    schemes = ("https",) if issuer.startswith("https:") else ("https", "http")
    if parts.scheme not in schemes or not parts.netloc or "@" in parts.netloc:
        raise problem
    return url


def _texts(values: object) -> frozenset[str]:
    items = values if isinstance(values, list) else []
    return frozenset(item for item in items if isinstance(item, str))


@dataclass(slots=True)
class CachedProvider:
    """The metadata and keys of an issuer as they were read at a time."""

    metadata: ProviderMetadata
    keys: KeySet
    read_at: datetime
    read_for_unknown_key_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FailedRead:
    """A read of a provider that failed at a time. It is not repeated at once."""

    failed_at: datetime
    text: str


@dataclass(slots=True)
class ProviderCache:
    """The cached providers of a process by issuer, the oldest first, and the running reads."""

    by_issuer: OrderedDict[str, CachedProvider] = field(default_factory=OrderedDict)
    failures: OrderedDict[str, FailedRead] = field(default_factory=OrderedDict)
    running_reads: dict[str, asyncio.Task[CachedProvider]] = field(default_factory=dict)

    def store(self, issuer: str, provider: CachedProvider) -> None:
        """Store a provider, and drop the oldest one if there are too many."""
        self.failures.pop(issuer, None)
        _put(self.by_issuer, issuer, provider)

    def drop(self, issuer: str) -> None:
        """Forget a provider and its failure."""
        self.by_issuer.pop(issuer, None)
        self.failures.pop(issuer, None)

    async def fetch_provider_shared(self, environment: Environment, issuer: str) -> CachedProvider:
        """Read a provider; concurrent calls share one read. Raises ProviderFailure.

        After a failure the provider is not asked again for FAILURE_LIFETIME.
        """
        failure = self.failures.get(issuer)
        if failure is not None and environment.now() - failure.failed_at < FAILURE_LIFETIME:
            raise ProviderFailure(failure.text)
        task = self.running_reads.get(issuer)
        if task is None:
            task = asyncio.create_task(read_provider(environment, issuer))
            self.running_reads[issuer] = task
            task.add_done_callback(lambda _: self.running_reads.pop(issuer, None))
        try:
            return await asyncio.shield(task)
        except ProviderFailure as problem:
            _put(self.failures, issuer, FailedRead(environment.now(), str(problem)))
            raise


def _put(cache: OrderedDict[str, Any], issuer: str, value: object) -> None:
    cache[issuer] = value
    cache.move_to_end(issuer)
    if len(cache) > MAX_CACHED_ISSUERS:
        cache.popitem(last=False)


@lru_cache(maxsize=4)
def cache_of_database(_database: Database) -> ProviderCache:
    """Return the cache of this process for a database."""
    return ProviderCache()


def network_policy(environment: Environment) -> NetworkPolicy:
    """Return the rule for addresses of providers."""
    options = environment.options
    return NetworkPolicy.from_options(
        options, allows_private=options.identity_providers_allow_private_networks
    )


async def get_cached_or_fetch_provider(
    environment: Environment, issuer: str, *, unknown_key: bool = False
) -> CachedProvider:
    """Return metadata and keys of an issuer, read at most 10 minutes ago.

    If the provider can't be reached, those of the last hour are returned.

    With `unknown_key` they are read again, unless that was done in the last 30 seconds. Raises
    ProviderFailure.
    """
    cache, now = cache_of_database(environment.database), environment.now()
    cached = cache.by_issuer.get(issuer)
    if cached is not None:
        read_at = cached.read_for_unknown_key_at if unknown_key else cached.read_at
        max_age = REFRESH_INTERVAL if unknown_key else CACHE_LIFETIME
        if read_at is not None and now - read_at < max_age:
            return cached
    try:
        provider = await cache.fetch_provider_shared(environment, issuer)
    except ProviderFailure:
        if cached is None or unknown_key or now - cached.read_at >= STALE_LIFETIME:
            raise
        return cached  # such as a logout while the provider restarts
    provider.read_for_unknown_key_at = now if unknown_key else None
    cache.store(issuer, provider)
    return provider


async def read_provider(environment: Environment, issuer: str) -> CachedProvider:
    """Read metadata and keys from the provider. Raises ProviderFailure."""
    document = await _fetch_json_object(
        environment, issuer.rstrip("/") + DISCOVERY_PATH, "discovery"
    )
    metadata = ProviderMetadata.from_document(issuer, document)
    keys = _public_keys(await _fetch_json_object(environment, metadata.jwks_uri, "keys"))
    return CachedProvider(metadata, keys, environment.now())


async def _fetch_json_object(
    environment: Environment, url: str, name: str, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Read a JSON object. Raises ProviderFailure, whose text begins with the name."""
    policy = network_policy(environment)
    with _raising_provider_failure(name):
        target = parse_http_target(url, allow_private=policy.allows_private)
        response = await get_and_read(target, policy, MAX_METADATA_BYTES, headers)
    return require_json_object_of_response(response, name)


@contextmanager
def _raising_provider_failure(name: str) -> Generator[None]:
    """Raise ProviderFailure for a URL that is not allowed, and for a failed request."""
    try:
        yield
    except InvalidInput as problem:
        raise ProviderFailure(f"{name}: {problem.message}") from problem
    except HttpRequestFailed as problem:
        raise ProviderFailure(f"{name}: {problem}") from problem


def require_json_object_of_response(response: HttpResponse, name: str) -> dict[str, Any]:
    """Return the object of a response with status 200. Raises ProviderFailure."""
    if response.status != OK:
        raise ProviderFailure(f"{name}: the provider answered with status {response.status}.")
    try:
        document = orjson.loads(response.body)
    except orjson.JSONDecodeError as problem:
        raise ProviderFailure(f"{name}: the response of the provider is not JSON.") from problem
    if not isinstance(document, dict):
        raise ProviderFailure(f"{name}: the response of the provider is not a JSON object.")
    return document


def _public_keys(document: Mapping[str, Any]) -> KeySet:
    """Return the usable signature keys of a JWK set. Raises ProviderFailure if there is none."""
    values = document.get("keys")
    usable = []
    for value in values[:MAX_KEYS] if isinstance(values, list) else []:
        if not isinstance(value, dict) or value.get("kty") not in PUBLIC_KEY_TYPES:
            continue
        if value.get("use", "sig") != "sig":
            continue
        try:
            usable.extend(KeySet.import_key_set({"keys": [value]}).keys)
        except (JoseError, ValueError, TypeError, KeyError):
            continue  # keys of unknown curves are ignored (RFC 7517, section 5)
    if not usable:
        raise ProviderFailure("keys: the provider publishes no usable signature key.")
    return KeySet(usable)


async def post_form(
    environment: Environment, url: str, headers: Mapping[str, str], body: bytes
) -> HttpResponse:
    """Post a form to an endpoint of a provider. Raises ProviderFailure."""
    policy = network_policy(environment)
    form_headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
        **headers,
    }
    with _raising_provider_failure("token"):
        target = parse_http_target(url, allow_private=policy.allows_private)
        return await post_and_read(target, form_headers, body, policy, MAX_METADATA_BYTES)


async def get_with_token(environment: Environment, url: str, token: str) -> dict[str, Any]:
    """Read the claims of the userinfo endpoint. Raises ProviderFailure."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    return await _fetch_json_object(environment, url, "userinfo", headers)

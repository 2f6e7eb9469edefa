"""A client of ACME servers (RFC 8555) that uses the library `acme`. Its methods block."""

import datetime
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from acme import errors, messages
from acme.challenges import HTTP01
from acme.client import ClientNetwork, ClientV2
from acme.messages import AuthorizationResource, OrderResource
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from josepy.errors import DeserializationError
from josepy.json_util import field as json_field
from josepy.jwa import ES256
from josepy.jwk import JWKEC
from requests import Response
from requests.adapters import HTTPAdapter
from requests.exceptions import HTTPError, RequestException, SSLError

from mail.tls.acme_client import (
    DEFAULT_ADVICE_SECONDS,
    MAX_TOKEN_CHARACTERS,
    RATE_LIMITED,
    SERVER_FAILURE,
    UNKNOWN_ACCOUNT,
    AcmeClient,
    AcmeError,
    AcmeServer,
    AcmeServerUnavailable,
    HttpChallenge,
    RenewalAdvice,
    RevocationReason,
    certificate_renewal_id,
    failure_of_names,
)

REQUEST_TIMEOUT = 15  # seconds, for one response
POLL_TIME = datetime.timedelta(seconds=2)  # maximum of one call, so that the server can stop
POLL_PAUSE = 1.0  # seconds between two polls
FIRST_SERVER_ERROR = 500  # HTTP status
UNTRUSTED_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"  # in the text of an SSLError
ALREADY_REVOKED = "alreadyRevoked"
PARSE_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)  # what invalid responses raise
BINDING_MISSING_TEXT = (
    "The ACME server requires an external account: set "
    "MERGANSER_ACME_EAB_KEY_ID and MERGANSER_ACME_EAB_HMAC."
)
REASON_CODES = {
    RevocationReason.UNSPECIFIED: 0,
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
}


def open_client(server: AcmeServer, account_key_pem: str) -> AcmeClient:
    """Connect to an ACME server and return a client for an account. Raises AcmeError."""
    return _LibraryClient(server, account_key_pem)


class _ReplacingOrder(messages.NewOrder):
    """A new order with the field `replaces` (RFC 9773, section 5), which the library lacks."""

    replaces: str | None = json_field("replaces", omitempty=True)


class _LibraryClient(AcmeClient):
    """A client of an ACME server. `AcmeClient` documents its methods."""

    def __init__(self, server: AcmeServer, account_key_pem: str) -> None:
        key: Any = serialization.load_pem_private_key(account_key_pem.encode(), None)
        verify: Any = str(server.ca_file) if server.ca_file else True
        self._key = JWKEC(key=key)
        self._network = ClientNetwork(
            self._key,
            alg=ES256,
            user_agent=server.user_agent,
            timeout=REQUEST_TIMEOUT,
            verify_ssl=verify,
        )
        self._network.session.hooks["response"].append(_require_answer_of_acme_server)
        self._binding = server.external_binding
        self._current_order: OrderResource | None = None
        self._pending: deque[AuthorizationResource] = deque()  # authorizations without a result
        try:
            with _convert_library_errors():
                directory = ClientV2.get_directory(server.directory_url, self._network)
        except AcmeError:
            self.close()
            raise
        self._client = ClientV2(directory, self._network)

    @property
    def accepts_orders(self) -> bool:
        return "newOrder" in self._client.directory.to_partial_json()

    @property
    def caa_identities(self) -> tuple[str, ...]:
        metadata = self._client.directory.to_partial_json().get("meta")
        published = getattr(metadata, "caa_identities", None) or ()
        return tuple(str(identity).lower() for identity in published)

    @property
    def has_renewal_info(self) -> bool:
        return "renewalInfo" in self._client.directory.to_partial_json()

    def load_renewal_advice(self, chain_pem: str) -> RenewalAdvice:
        # The library's renewal_time accepts windows that end before they start, which are invalid
        # (RFC 9773, section 4.2).
        renewal_id = certificate_renewal_id(chain_pem)
        if renewal_id is None:
            raise AcmeError("The certificate does not name the key of its issuer.")
        with _convert_library_errors():
            base_url = str(self._client.directory["renewalInfo"]).rstrip("/")
            response = self._network.get(f"{base_url}/{renewal_id}")
            window = messages.RenewalInfo.from_json(response.json()).suggested_window
            local_now = datetime.datetime.now()  # noqa: DTZ005 - the library uses local time
            valid_for = ClientV2.retry_after(response, DEFAULT_ADVICE_SECONDS) - local_now
            if not window.start < window.end:
                raise AcmeError("The renewal window of the ACME server ends before it starts.")
            return RenewalAdvice(window.start, window.end, valid_for)

    def register_or_use_account(self, account_url: str | None, contact_address: str) -> str:
        if account_url:
            self._network.account = messages.RegistrationResource(
                uri=account_url, body=messages.Registration()
            )
            return account_url
        with _convert_library_errors():
            registration = messages.NewRegistration.from_data(
                email=contact_address or None,
                terms_of_service_agreed=True,
                external_account_binding=self._external_account_binding_if_required(),
            )
            try:
                account = self._client.new_account(registration)
            except errors.ConflictError as conflict:
                self._network.account = messages.RegistrationResource(
                    uri=str(conflict.location), body=messages.Registration()
                )
                return str(conflict.location)
        return str(account.uri)

    def _external_account_binding_if_required(self) -> dict[str, Any] | None:
        """The external account binding (RFC 8555, section 7.3.4), if the server requires one.

        Raises AcmeError if it is not configured.
        """
        if not self._client.external_account_required():
            return None
        if self._binding is None:
            raise AcmeError(BINDING_MISSING_TEXT)
        public_key = self._key.public_key()
        return messages.ExternalAccountBinding.from_data(
            public_key, *self._binding, self._client.directory
        )

    def create_order(
        self, csr_pem: bytes, dns_names: Sequence[str], replaced_id: str | None = None
    ) -> list[str]:
        with _convert_library_errors():
            response = self._post_order(dns_names, replaced_id)
            body = messages.Order.from_json(response.json())
            authorization_urls = [str(url) for url in body.authorizations]
            if len(authorization_urls) > len(dns_names):
                raise AcmeError(
                    "The ACME server requires the validation of names that were not ordered."
                )
            self._current_order = OrderResource(
                body=body, uri=response.headers["Location"], authorizations=(), csr_pem=csr_pem
            )
            return authorization_urls

    def _post_order(self, dns_names: Sequence[str], replaced_id: str | None) -> Response:
        """Send the order, and repeat it without `replaced_id` if the server refuses that."""
        url = self._client.directory["newOrder"]
        identifiers = [
            messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=name) for name in dns_names
        ]
        if replaced_id:
            try:
                return self._post(
                    url, _ReplacingOrder(identifiers=identifiers, replaces=replaced_id)
                )
            except errors.ConflictError:
                pass  # the certificate was replaced already
            except messages.Error as problem:
                if problem.code in (RATE_LIMITED, UNKNOWN_ACCOUNT):
                    raise
        return self._post(url, messages.NewOrder(identifiers=identifiers))

    def load_challenge_unless_valid(self, authorization_url: str) -> HttpChallenge | None:
        with _convert_library_errors():
            body = messages.Authorization.from_json(self._post(authorization_url, None).json())
            if body.status == messages.STATUS_VALID:
                return None
            dns_name = body.identifier.value
            http_challenges = [
                offered for offered in body.challenges if isinstance(offered.chall, HTTP01)
            ]
            if not http_challenges:
                raise AcmeError(f"The ACME server offers no HTTP challenge for {dns_name}.")
            key_authorization = http_challenges[0].chall.validation(self._key)
            token = http_challenges[0].chall.encode("token")
            if (
                len(token) > MAX_TOKEN_CHARACTERS
                or len(key_authorization) > 2 * MAX_TOKEN_CHARACTERS
            ):
                raise AcmeError("The tokens of the ACME server are too long.")
            self._pending.append(AuthorizationResource(body=body, uri=authorization_url))
            return HttpChallenge(token, key_authorization, http_challenges[0])

    def answer_challenge(self, challenge: HttpChallenge) -> None:
        with _convert_library_errors():
            response = challenge.challenge_body.chall.response(self._key)
            self._client.answer_challenge(challenge.challenge_body, response)

    def poll_authorizations_and_return_are_valid(self) -> bool:
        deadline, failed = time.monotonic() + POLL_TIME.total_seconds(), []
        with _convert_library_errors():
            for _ in range(len(self._pending)):
                if time.monotonic() > deadline:
                    break
                authorization, _answer = self._client.poll(self._pending.popleft())
                if authorization.body.status == messages.STATUS_PENDING:
                    self._pending.append(authorization)
                elif authorization.body.status != messages.STATUS_VALID:
                    failed.append(authorization)
        if failed:
            raise _failure_of_authorizations(failed)
        if self._pending:
            time.sleep(POLL_PAUSE)
        return not self._pending

    def finalize_order(self) -> None:
        with _convert_library_errors():
            self._current_order = self._client.begin_finalization(self._required_order)

    def poll_certificate_or_none(self) -> str | None:
        with _convert_library_errors():
            try:  # the library uses local time
                deadline = datetime.datetime.now() + POLL_TIME  # noqa: DTZ005
                self._current_order = self._client.poll_finalization(self._required_order, deadline)
            except errors.TimeoutError:
                return None
        return str(self._required_order.fullchain_pem)

    def revoke(self, chain_pem: str, reason: RevocationReason) -> None:
        certificate = x509.load_pem_x509_certificate(chain_pem.encode())
        with _convert_library_errors():
            try:
                self._client.revoke(certificate, REASON_CODES[reason])
            except messages.Error as problem:
                if problem.code != ALREADY_REVOKED:
                    raise

    def close(self) -> None:
        # `Session.close` only forgets the connections: they stay open as long as an exception
        # refers to them.
        for adapter in self._network.session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                pools = adapter.poolmanager.pools
                for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over
                    pools[key].close()
        self._network.session.close()

    def _post(self, url: str, body: Any) -> Response:
        """Send a signed request. Without a body it reads the resource (POST-as-GET)."""
        nonce_url = self._client.directory["newNonce"]
        return self._network.post(url, body, new_nonce_url=nonce_url)

    @property
    def _required_order(self) -> OrderResource:
        """The current order, which must exist."""
        assert self._current_order is not None  # noqa: S101 - `create_order` comes first
        return self._current_order


def _require_answer_of_acme_server(response: Response, **_: Any) -> None:
    """Raise HTTPError for the response of a server or proxy that fails, without a problem document.

    The library would report a response that it can't parse.
    """
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    is_problem = content_type == ClientNetwork.JSON_ERROR_CONTENT_TYPE
    if response.status_code >= FIRST_SERVER_ERROR and not is_problem:
        response.close()  # nothing else would close its connection
        raise HTTPError(f"HTTP {response.status_code}")


@contextmanager
def _convert_library_errors() -> Generator[None]:
    """Convert exceptions of the library to AcmeError. Texts contain no key."""
    try:
        yield
    except messages.Error as problem:
        raise _failure_from_problem(problem) from None
    except errors.IssuanceError as problem:
        raise _failure_from_problem(problem.error) from None
    except HTTPError as problem:
        raise AcmeServerUnavailable(f"The ACME server fails: {problem}.") from None
    except (RequestException, OSError) as problem:
        if isinstance(problem, SSLError) and UNTRUSTED_CERTIFICATE in str(problem):
            text = "The TLS certificate of the ACME server is not trusted: set MERGANSER_ACME_CA."
            raise AcmeError(text) from None
        text = f"The ACME server does not respond: {type(problem).__name__}."
        raise AcmeServerUnavailable(text) from None
    except (errors.Error, DeserializationError, KeyError, *PARSE_ERRORS) as problem:
        text = f"The response of the ACME server can't be parsed: {type(problem).__name__}."
        raise AcmeError(text) from None


def _failure_from_problem(problem: Any) -> AcmeError:
    """The failure for a problem document (RFC 8555, section 6.7), with its subproblems."""
    error_type = str(problem.code or "error")
    parts = [f"{error_type}: {problem.detail or 'no reason given'}"]
    for subproblem in problem.subproblems or ():
        prefix = f"{subproblem.identifier.value}: " if subproblem.identifier else ""
        parts.append(f"{prefix}{subproblem.detail or subproblem.code or 'no reason given'}")
    kind = AcmeServerUnavailable if error_type == SERVER_FAILURE else AcmeError
    return kind("; ".join(parts), error_type=error_type)


def _failure_of_authorizations(authorizations: Sequence[AuthorizationResource]) -> AcmeError:
    """The failure for refused authorizations: the problem of the first, and the other names."""
    dns_names = [str(authorization.body.identifier.value) for authorization in authorizations]
    problems = (
        challenge.error
        for challenge in authorizations[0].body.challenges
        if challenge.error is not None
    )
    problem = next(problems, None)
    failure = _failure_from_problem(problem) if problem else AcmeError("The challenge failed.")
    return failure_of_names(dns_names, str(failure), error_type=failure.code)

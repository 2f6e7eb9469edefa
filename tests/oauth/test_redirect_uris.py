"""Redirect URIs that can be registered, and those that a request can name."""

import pytest

from models.errors import InvalidInput
from resolvers.oauth.redirect_uris import (
    form_action_source,
    is_registered_redirect_uri,
    validate_redirect_uris,
)

REGISTERED = "https://app.example.com/callback"


@pytest.mark.parametrize(
    "uri",
    [
        REGISTERED,
        "https://app.example.com",
        "https://app.example.com:8443/cb?tenant=1",
        "http://127.0.0.1/cb",
        "http://127.0.0.1:4321/cb",
        "http://[::1]/cb",
        "com.example.app:/callback",
        "com.example.app://callback",
    ],
)
def test_safe_redirect_uri_can_be_registered(uri: str) -> None:
    assert validate_redirect_uris([uri, uri], ["redirectUris"]) == [uri]


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/callback",
        "http://app.example.com/callback",
        "http://localhost/cb",  # can be resolved to another host (RFC 8252, section 8.3)
        "http://127.0.0.1.example.com/cb",
        "http://127.0.0.2/cb",
        "http://127.0.0.1:0/cb",
        "http://127.0.0.1:99999/cb",
        "https://app.example.com:0/cb",
        "https://app.example.com:99999/cb",
        "https://user@app.example.com/cb",
        "https://user:password@app.example.com/cb",
        "http://127.0.0.1@evil.example/cb",
        "https://app.example.com/cb#part",
        "https://app.example.com/cb#",
        "HTTPS://app.example.com/cb",
        "https://App.example.com/cb",
        "https://*.example.com/cb",
        "https://app.example.com/../cb",
        "https://app.example.com/a/%2e%2E/cb",
        "https://app.example.com\\@evil.example/cb",
        "https://app.example.com/c b",
        "https://app.example.com/cb\n",
        "https://app.example.com/\u0441b",
        "https:///cb",
        "javascript:alert(1)",
        "data:text/html,x",
        "myapp:/callback",
        "com.example.app:",
        "https://app.example.com/" + "x" * 1000,
    ],
)
def test_unsafe_redirect_uri_can_not_be_registered(uri: str) -> None:
    with pytest.raises(InvalidInput) as error:
        validate_redirect_uris([REGISTERED, uri], ["redirectUris"])
    assert (error.value.path, error.value.index) == (["redirectUris"], 1)


@pytest.mark.parametrize("count", [0, 21])
def test_number_of_redirect_uris_is_limited(count: int) -> None:
    with pytest.raises(InvalidInput):
        validate_redirect_uris([f"{REGISTERED}{n}" for n in range(count)], ["redirectUris"])


@pytest.mark.parametrize(
    "requested",
    [
        "https://app.example.com/callback/",
        "https://app.example.com/Callback",
        "https://APP.example.com/callback",
        "https://app.example.com./callback",
        "https://app.example.com:443/callback",
        "https://app.example.com:8443/callback",
        "https://user@app.example.com/callback",
        "https://app.example.com/callback#x",
        "https://app.example.com/callback?x=1",
        "https://app.example.com/./callback",
        "https://app.example.com/%63allback",
        "http://app.example.com/callback",
        "https://app.example.com/callback ",
        "https://app.example.com",
        "",
    ],
)
def test_requested_redirect_uri_must_be_equal(requested: str) -> None:
    assert not is_registered_redirect_uri([REGISTERED], requested)
    assert is_registered_redirect_uri([REGISTERED], REGISTERED)


@pytest.mark.parametrize(
    ("registered", "requested", "expected"),
    [
        ("http://127.0.0.1/cb", "http://127.0.0.1:50000/cb", True),
        ("http://127.0.0.1:1/cb", "http://127.0.0.1:50000/cb", True),
        ("http://127.0.0.1:1/cb", "http://127.0.0.1/cb", True),
        ("http://[::1]/cb", "http://[::1]:50000/cb", True),
        ("http://[::1]/cb", "http://127.0.0.1:50000/cb", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:50000/CB", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:50000/cb/", False),
        ("http://127.0.0.1/cb", "https://127.0.0.1:50000/cb", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:0/cb", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:65536/cb", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:5@evil.example/cb", False),
        ("http://127.0.0.1/cb", "http://x@127.0.0.1:5/cb", False),
        ("http://127.0.0.1/cb", "http://127.0.0.1:5/cb#x", False),
        ("http://127.0.0.1/cb", "http://localhost:5/cb", False),
    ],
)
def test_only_the_port_of_a_loopback_uri_can_differ(
    registered: str, requested: str, expected: bool
) -> None:
    assert is_registered_redirect_uri([registered], requested) is expected


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        (REGISTERED, "https://app.example.com"),
        ("https://app.example.com:8443/cb", "https://app.example.com:8443"),
        ("http://127.0.0.1:5/cb", "http://127.0.0.1:5"),
        ("http://[::1]:5/cb", "http:"),
        ("com.example.app:/cb", "com.example.app:"),
    ],
)
def test_forms_can_be_redirected_to_the_redirect_uri(uri: str, source: str) -> None:
    assert form_action_source(uri) == source

"""Debian's Glewlwyd as an OpenID provider on loopback, with SQLite."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import KeySet, RSAKey

from bench.servers.ports import HOST, free_port
from tests.support.run_scope import CI

PROGRAM = Path("/usr/bin/glewlwyd")
SCHEMA_SCRIPT = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
ADMINISTRATOR = {"username": "admin", "password": "password"}  # of the packaged script
PASSWORD = "far-away"  # noqa: S105 - only valid on loopback
SCOPES = ["openid", "email", "profile"]
EMAIL_VERIFIED_CLAIM = {
    "name": "email_verified",
    "user-property": "email_verified",
    "type": "boolean",
    "boolean-value-true": "true",
    "boolean-value-false": "false",
    "scope": ["email"],
}
START_TIMEOUT = 60.0  # seconds
REQUEST_TIMEOUT = 60.0
GlewlwydAccounts = Mapping[str, Mapping[str, Any]]
CONFIGURATION = """
port = {port}
bind_address = "127.0.0.1"
external_url = "http://127.0.0.1:{port}"
login_url = "login.html"
api_prefix = "api"
static_files_path = "/usr/share/glewlwyd/webapp/"
log_mode = "console"
log_level = "WARNING"
cookie_secure = 0
session_key = "GLEWLWYD2_SESSION_ID"
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "/usr/lib/glewlwyd/user"
client_module_path = "/usr/lib/glewlwyd/client"
user_auth_scheme_module_path = "/usr/lib/glewlwyd/scheme"
plugin_module_path = "/usr/lib/glewlwyd/plugin"
hash_algorithm = "SHA512"
database = {{
  type = "sqlite3"
  path = "{database}"
}}
"""


def require_glewlwyd() -> None:
    """Skip the test if Glewlwyd is not installed, but fail in CI."""
    is_installed = PROGRAM.exists()
    if not is_installed and not CI:
        pytest.skip("there is no Glewlwyd here: apt-get install glewlwyd")
    assert is_installed, "glewlwyd is to be installed in CI: .ci/run"


@dataclass(frozen=True)
class GlewlwydProvider:
    """A running Glewlwyd with one client. Its API signs users in."""

    origin: str
    client_id: str

    @property
    def issuer(self) -> str:
        return f"{self.origin}/api/oidc"

    async def sign_in(self, authorization_url: str, account: str) -> str:
        """Sign in and grant the scopes. Returns the URL of the redirect to the client, without
        fetching it.
        """
        async with httpx.AsyncClient(
            base_url=self.origin, timeout=REQUEST_TIMEOUT, trust_env=False
        ) as browser:
            login_page = await browser.get(authorization_url)
            assert login_page.headers["location"].startswith(f"{self.origin}/login.html")
            credentials = {"username": account, "password": PASSWORD}
            (await browser.post("/api/auth/", json=credentials)).raise_for_status()
            grant_path = f"/api/auth/grant/{self.client_id}"
            grant = {"scope": " ".join(SCOPES)}
            (await browser.put(grant_path, json=grant)).raise_for_status()
            response = await browser.get(f"{authorization_url}&g_continue")  # as its page does
            assert response.status_code == 302, response.text
            return response.headers["location"]


def plugin_parameters(issuer: str) -> dict[str, Any]:
    """The parameters of the OIDC plugin."""
    keys = KeySet([RSAKey.generate_key(2048, {"kid": "1", "alg": "RS256", "use": "sig"})])
    return {
        "iss": issuer,
        "oauth-as-iss-id": True,
        "jwks-private": json.dumps(keys.as_dict(private=True)),
        "jwt-type": "rsa",
        "jwt-key-size": "256",
        "access-token-duration": 3600,
        "refresh-token-duration": 1209600,
        "code-duration": 600,
        "auth-type-code-enabled": True,
        "auth-type-refresh-enabled": True,
        "refresh-token-one-use": "always",
        "subject-type": "public",
        "allowed-scope": SCOPES,
        "email-claim": "on-demand",
        "email-claim-scope": ["email"],
        "name-claim": "on-demand",
        "name-claim-scope": ["profile"],
        "claims": [EMAIL_VERIFIED_CLAIM],
        "pkce-allowed": True,
        "pkce-required": True,
        "jwks-show": True,
    }


def _user_properties(claims: Mapping[str, Any]) -> dict[str, str]:
    """The properties of a user. Glewlwyd stores only text."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in claims.items()
    }


def _configure(
    http: httpx.Client, issuer: str, client: Mapping[str, Any], accounts: GlewlwydAccounts
) -> None:
    """Configure the plugin, the client and the users through the API."""

    def add(path: str, **values: Any) -> None:
        response = http.post(f"/api/{path}/", json=values)
        assert response.status_code == 200, response.text

    add("auth", **ADMINISTRATOR)
    for name in ("email", "profile"):
        add("scope", name=name, display_name=name, password_required=False, scheme={})
    users = http.get("/api/mod/user/database").raise_for_status().json()
    users["parameters"]["data-format"]["email_verified"] = {"read": True, "write": True}
    http.put("/api/mod/user/database", json=users).raise_for_status()
    http.put("/api/mod/user/database/reset", json={}).raise_for_status()
    plugin = {"module": "oidc", "name": "oidc", "display_name": "OIDC", "order_rank": 0}
    add("mod/plugin", **plugin, parameters=plugin_parameters(issuer))
    add(
        "client",
        confidential=True,
        authorization_type=["code", "refresh_token"],
        token_endpoint_auth_method=["client_secret_basic", "client_secret_post"],
        scope=[],
        **client,
    )
    for username, claims in accounts.items():
        scopes = ["g_profile", *SCOPES]
        add(
            "user",
            username=username,
            password=PASSWORD,
            scope=scopes,
            **_user_properties(claims),
        )


@contextmanager
def run_glewlwyd(
    folder: Path,
    *,
    client_id: str,
    client_secret: str,
    redirect_uris: Sequence[str],
    accounts: GlewlwydAccounts,
) -> Iterator[GlewlwydProvider]:
    """Run Glewlwyd in a folder, with one client. `accounts` has the claims of each user by name.

    Claims are `email`, `email_verified` and `name`. `sub` is a random text. Skips
    the test if Glewlwyd is not installed; fails in CI.
    """
    require_glewlwyd()
    client = {
        "client_id": client_id,
        "password": client_secret,
        "redirect_uri": list(redirect_uris),
    }
    folder.mkdir(exist_ok=True)
    port, database = free_port(), folder / "glewlwyd.sqlite3"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(SCHEMA_SCRIPT.read_text())
    configuration_file, log_file = folder / "glewlwyd.conf", folder / "glewlwyd.log"
    configuration_file.write_text(CONFIGURATION.format(port=port, database=database))
    provider = GlewlwydProvider(f"http://{HOST}:{port}", client_id)
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            [PROGRAM, f"--config-file={configuration_file}"], stdout=log, stderr=log
        ) as process,
    ):
        try:
            _wait_until_ready(provider.origin, process, log_file)
            with httpx.Client(
                base_url=provider.origin, timeout=REQUEST_TIMEOUT, trust_env=False
            ) as http:
                _configure(http, provider.issuer, client, accounts)
            yield provider
        finally:
            process.kill()


def _wait_until_ready(origin: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            httpx.get(f"{origin}/config", trust_env=False).raise_for_status()
        except httpx.TransportError:
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < deadline, log_file.read_text()
            time.sleep(0.05)
        else:
            return

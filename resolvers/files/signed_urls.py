"""Sign URLs that give read access to the bytes behind them for 15 to 20 minutes."""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import col

from models.base64url import encode_base64url
from models.errors import Unauthenticated
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.throttling.policy import BanCause
from models.users.roles import Role, Scope, expand_scopes
from models.users.tables import User
from resolvers.auth import credential_status
from resolvers.auth.credential_cache import CachedCredential
from resolvers.context import Context
from resolvers.throttling import client_failures
from resolvers.viewer import ShareVisibility, Viewer

MIN_LIFETIME = timedelta(minutes=15)  # at least
EXPIRY_STEP = 300  # seconds; the end is rounded up, so that the URL changes rarely
METHOD = "GET"  # also valid for HEAD

_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_OWNER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)  # 0: an API key of the platform
_CREDENTIAL = re.compile(r"([tkav])([1-9][0-9]{0,18})|(b)", re.ASCII)


def sign_path(
    environment: Environment, path: str, user_id: int, signer: Viewer, *, now: datetime
) -> str:
    """Return the path with a query that lets its bearer read it as this user.

    It expires after 15 to 20 minutes, and when the credential of `signer` ends. The query of a
    path changes every five minutes.
    """
    expires_at = math.ceil((now + MIN_LIFETIME).timestamp() / EXPIRY_STEP) * EXPIRY_STEP
    credential = signer.credential_key
    signature = _url_signature(environment, path, credential, user_id, expires_at)
    return f"{path}?exp={expires_at}&user={user_id}&by={credential}&sig={signature}"


def verified_user_id_of_signed_path(
    environment: Environment, path: str, query: Mapping[str, str]
) -> int:
    """Return the id of the user that a signed path is read as.

    Raises Unauthenticated if it is expired or not signed here.
    """
    if not is_signed_here(environment, path, query):
        raise Unauthenticated
    if int(query["exp"]) <= environment.now().timestamp():
        raise Unauthenticated
    return int(query["user"])


def is_signed_here(environment: Environment, path: str, query: Mapping[str, str]) -> bool:
    """True if this platform signed a path. It can be expired."""
    expires_at, user_id, credential, given_signature = (
        query.get(part, "") for part in ("exp", "user", "by", "sig")
    )
    if not (
        _NUMBER.fullmatch(expires_at)
        and _OWNER.fullmatch(user_id)
        and _CREDENTIAL.fullmatch(credential)
    ):
        return False
    expected_signature = _url_signature(
        environment, path, credential, int(user_id), int(expires_at)
    )
    return hmac.compare_digest(
        expected_signature.encode(), given_signature.encode(errors="surrogatepass")
    )


async def _verify_user_id_and_count_forgery(
    environment: Environment, path: str, query: Mapping[str, str], ip: str | None
) -> int:
    """Return the id of the user that a signed path is read as.

    A path that was not signed here counts as a failure of the network of `ip`. Raises
    Unauthenticated as `verified_user_id_of_signed_path` does.
    """
    if not is_signed_here(environment, path, query):
        ctx = Context(environment, Viewer(), client_ip=ip)
        await client_failures.count_failure_and_log_ban(ctx, BanCause.FORGED_LINK)
    return verified_user_id_of_signed_path(environment, path, query)


async def read_only_viewer_of_signed_path(
    environment: Environment, path: str, query: Mapping[str, str], *, ip: str | None
) -> Viewer:
    """Return a read-only viewer of the user of a signed path.

    `ip` is the address of the client, whose forged signatures are counted. Raises Unauthenticated
    if the signature, the account or the credential is no longer valid, or if the credential may no
    longer read as this user.
    """
    user_id = await _verify_user_id_and_count_forgery(environment, path, query, ip)
    kind, credential_id = query["by"][0], int(query["by"][1:] or 0)
    statement = select(
        col(User.auth_version), credential_status.has_shared_mailboxes_sql(col(User.id))
    )
    user_statement = statement.where(
        col(User.id) == user_id, credential_status.is_user_enabled_sql()
    )
    rows: Sequence[ColumnRow] = await environment.database.read(user_statement)
    if not rows or (kind == "v" and rows[0].auth_version != credential_id):
        raise Unauthenticated
    if kind in "tka":
        signer = await _load_credential_of_signer(environment, kind, credential_id)
        if signer is None or not _may_read_as(signer.viewer, user_id):
            raise Unauthenticated
    reach = ShareVisibility(has_shared_mailboxes=bool(rows[0].shared))
    scopes = frozenset({Scope.MAIL_READ})
    return Viewer(user_id, Role.USER, scopes, read_only=True, share_visibility=reach)


def _may_read_as(signer: Viewer, user_id: int) -> bool:
    """True if the signer has the right to read mail as this user: its own account, or as ROOT."""
    is_own_or_root = signer.user_id == user_id or signer.role is Role.ROOT
    return is_own_or_root and Scope.MAIL_READ in expand_scopes(signer.scopes)


async def signer_of_signed_path(
    environment: Environment, path: str, query: Mapping[str, str], *, ip: str | None
) -> Viewer:
    """Return the signer of a path as a viewer with the present rights of the credential.

    Use it for what the role of the signer allows. `ip` is the address of the client, whose forged
    signatures are counted. Raises Unauthenticated if the signature or the
    credential is no longer valid.
    """
    await _verify_user_id_and_count_forgery(environment, path, query, ip)
    kind, credential_id = query["by"][0], int(query["by"][1:] or 0)
    if kind == "b":
        return Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL}))
    cached_credential = (
        await _load_credential_of_signer(environment, kind, credential_id)
        if kind in "tka"
        else None
    )
    if cached_credential is None:
        raise Unauthenticated
    return cached_credential.viewer


async def _load_credential_of_signer(
    environment: Environment, kind: str, credential_id: int
) -> CachedCredential | None:
    if kind == "t":
        return await credential_status.load_token_if_valid(environment, id=credential_id)
    if kind == "k":
        return await credential_status.load_api_key_if_valid(environment, id=credential_id)
    return await credential_status.load_app_password_for_http_if_valid(environment, credential_id)


def absolute_url(environment: Environment, path: str, request_origin: str) -> str:
    """Return the URL of a path below the setting `public_url`.

    If that is empty, `request_origin` is used instead. It is the origin of the request, such as
    https://mail.example.org.
    """
    return (environment.options.public_url or request_origin).rstrip("/") + path


def _url_signature(
    environment: Environment, path: str, credential: str, user_id: int, expires_at: int
) -> str:
    # Fields of a fixed form come last, so that no path can contain them.
    text = f"{METHOD}\n{path}\n{credential}\n{user_id}\n{expires_at}"
    if base := environment.incarnation.base:  # URLs of another incarnation are refused
        text = f"{base}\n{text}"
    digest = hmac.digest(
        environment.signing_secret, text.encode(errors="surrogatepass"), hashlib.sha256
    )
    return encode_base64url(digest)

"""Signed URLs of downloads: validity, scope, changes and revocation."""

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.http import download_urls
from models.errors import Unauthenticated
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.users.tables import User
from resolvers.files import signed_urls
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.case_loop import each_case
from tests.support.clients.download_requests import download_paths, error_code, message
from tests.support.clients.http_requests import get_path, signed_path

__all__ = ["message"]


async def test_signed_url_needs_no_credential_for_fifteen_minutes(
    ada: GraphQLClient, message: int, clock: ManualClock
) -> None:
    clock.tick(seconds=1.5)
    for path in download_paths(message):
        url = signed_path(ada, path)
        assert (await ada.http.get(url)).status_code == 200
        assert (await ada.http.head(url)).status_code == 200
    clock.tick(minutes=15)
    response = await ada.http.get(url)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "private, max-age=300"
    clock.tick(minutes=5)
    expired_response = await ada.http.get(url)
    assert (expired_response.status_code, error_code(expired_response)) == (401, "UNAUTHENTICATED")


async def test_signed_url_is_stable_for_five_minutes(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    clock.tick(seconds=1)
    first = signed_path(ada, "/rest/x")
    clock.tick(minutes=4)
    assert signed_path(ada, "/rest/x") == first
    clock.tick(minutes=1)
    assert signed_path(ada, "/rest/x") != first


async def test_signature_is_valid_only_for_its_path_and_user(
    ada: GraphQLClient, bob: GraphQLClient, message: int
) -> None:
    source, attachment, _ = download_paths(message)
    query = signed_path(ada, source).partition("?")[2]
    assert (await ada.http.get(f"{source}?{query}")).status_code == 200
    assert (await ada.http.get(f"{attachment}?{query}")).status_code == 401
    other_id = (await deliver_to(ada, "Other")).message_id
    assert (
        await ada.http.get(f"{download_urls.message_source_path(other_id)}?{query}")
    ).status_code == 401
    # Bob's signature is valid, but the message is not his.
    response = await ada.http.get(signed_path(bob, source))
    assert (response.status_code, error_code(response)) == (404, "NOT_FOUND")


async def test_changed_signed_url_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, message: int
) -> None:
    url = httpx.URL("http://test" + signed_path(ada, download_urls.message_source_path(message)))
    changes = {
        "exp": [str(int(url.params["exp"]) + 300), "0" + url.params["exp"], "-1", "²", ""],
        "user": [str(bob.user.id), "0", "9" * 30, ""],
        "sig": [url.params["sig"][:-1], url.params["sig"][:-1] + "é", "", "A" * 43],
    }
    for case in each_case(changes.items()):
        with case as (name, values):
            for value in values:
                response = await ada.http.get(url.copy_set_param(name, value))
                assert (response.status_code, error_code(response)) == (401, "UNAUTHENTICATED")
            incomplete_response = await ada.http.get(url.copy_remove_param(name))
            assert incomplete_response.status_code == 401


async def test_invalid_signature_is_refused_despite_credential(
    ada: GraphQLClient, message: int
) -> None:
    response = await get_path(
        ada, f"{download_urls.message_source_path(message)}?exp=9&user=9&sig=x"
    )
    assert response.status_code == 401


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}])
async def test_signed_url_ends_when_user_loses_access(
    ada: GraphQLClient, message: int, change: dict[str, bool]
) -> None:
    url = signed_path(ada, download_urls.message_source_path(message))
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(change)
        await session.exec(statement)
    assert (await ada.http.get(url)).status_code == 401


def test_signed_url_is_absolute_with_public_url() -> None:
    default_environment: Any = SimpleNamespace(options=Options())
    public_environment: Any = SimpleNamespace(
        options=Options(public_url="https://mail.example.org/m/")
    )
    assert (
        signed_urls.absolute_url(default_environment, "/rest/x", "http://test:80/")
        == "http://test:80/rest/x"
    )
    assert (
        signed_urls.absolute_url(public_environment, "/rest/x", "http://test")
        == "https://mail.example.org/m/rest/x"
    )


def test_signed_url_is_invalid_with_other_secret_path_or_time(environment: Environment) -> None:
    url = signed_urls.sign_path(
        environment, "/rest/x", 7, Viewer(7, auth_version=1), now=environment.now()
    )
    query = dict(httpx.URL(url).params)
    assert signed_urls.verified_user_id_of_signed_path(environment, "/rest/x", query) == 7
    with pytest.raises(Unauthenticated):
        signed_urls.verified_user_id_of_signed_path(
            replace(environment, signing_secret=b"t" * 32), "/rest/x", query
        )
    with pytest.raises(Unauthenticated):
        signed_urls.verified_user_id_of_signed_path(environment, "/rest/x\n7", query)
    later = environment.now() + timedelta(minutes=21)
    with pytest.raises(Unauthenticated):
        signed_urls.verified_user_id_of_signed_path(
            replace(environment, now=lambda: later), "/rest/x", query
        )

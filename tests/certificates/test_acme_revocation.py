"""Certificates that are revoked before they are deleted."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from sqlalchemy import update
from sqlmodel import col

from bench.servers.ports import free_port
from models.certificates import Certificate
from models.runtime.environment import Environment
from resolvers.certificates import acme_worker
from tests.conftest import Client
from tests.support.operations.certificate_operations import DAY, DELETE, NAME, Signer, put, stored
from tests.support.servers.acme_platforms import Place, placed
from tests.support.servers.acme_proxy import REVOKES, Front, Said, front
from tests.support.stores.counter_check import rows

OTHER = "imap.example.org"
RECORDS: dict[Any, list[str]] = {(name, "A"): ["127.0.0.1"] for name in (NAME, OTHER)}
CODES = [
    ("UNSPECIFIED", 0),
    ("KEY_COMPROMISE", 1),
    ("AFFILIATION_CHANGED", 3),
    ("SUPERSEDED", 4),
    ("CESSATION_OF_OPERATION", 5),
]


async def deleted(client: Client, ids: list[str], **more: Any) -> Any:
    """What certificateDelete says."""
    return (await client(DELETE, input={"ids": ids, **more}))["certificateDelete"]


@asynccontextmanager
async def issued(
    world: Environment, root: Client, folder: Path, names: list[str]
) -> AsyncIterator[tuple[Place, Front, list[str], list[x509.Certificate]]]:
    """Certificates that are issued for each of these names, and their ids."""
    async with placed(world, root, folder, RECORDS) as place, front(place.there) as before:
        place.options(acme_directory=before.directory)
        ids, made = [], []
        for name in names:
            await put(place.root, serverName=name, acme=True)
            assert await acme_worker.process_next_certificate(place.world)
            ids.append((await place.state(name))["id"])
        for name in names:
            ((chain,),) = await rows(
                world,
                f"SELECT chain FROM certificates WHERE server_name = '{name}'",  # noqa: S608
            )
            made.append(x509.load_pem_x509_certificate(chain.encode()))
        yield place, before, ids, made


async def judged(place: Place, made: x509.Certificate) -> tuple[str, int | None]:
    """What pebble itself says of a certificate."""
    trust = ssl.create_default_context(cafile=str(place.there.ca))
    base = f"https://localhost:{place.there.manages}/cert-status-by-serial"
    async with httpx.AsyncClient(verify=trust) as http:
        said = (await http.get(f"{base}/{made.serial_number:x}")).json()
    return said["Status"], said.get("Reason")


@pytest.mark.parametrize(("reason", "code"), CODES)
async def test_it_is_revoked_with_its_reason_and_gone(
    world: Environment, root: Client, tmp_path: Path, reason: str, code: int
) -> None:
    async with issued(world, root, tmp_path, [NAME]) as (place, before, ids, (made,)):
        assert (await judged(place, made))[0] == "Valid"
        tried = await deleted(place.root, ids, revoke=reason, options={"validateOnly": True})
        assert tried["errors"] == []
        assert (await judged(place, made))[0] == "Valid"
        answer = await deleted(place.root, ids, revoke=reason)
        assert answer == {"deletedIds": ids, "revokedIds": ids, "errors": []}
        assert await judged(place, made) == ("Revoked", code)
        assert [path for path, _ in before.posts if path == REVOKES] == [REVOKES]
        assert await rows(world, "SELECT * FROM certificates") == []
        log = await rows(world, "SELECT mutation, after FROM admin_log ORDER BY id")
        assert log[-1][0] == "certificateDelete"
        assert reason in str(log[-1][1])


async def test_without_a_reason_nothing_is_revoked(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with issued(world, root, tmp_path, [NAME]) as (place, _before, ids, (made,)):
        answer = await deleted(place.root, ids, revoke=None)
        assert answer == {"deletedIds": ids, "revokedIds": [], "errors": []}
        assert (await judged(place, made))[0] == "Valid"


@pytest.mark.parametrize(
    ("said", "code", "detail"),
    [
        (Said.problem("badRevocationReason", 400), "VALIDATION", "reason"),
        (Said.problem("unauthorized", 403), "UNAVAILABLE", "acme"),
        (Said.problem("serverInternal", 500), "UNAVAILABLE", "acme"),
        (Said(b"", 502), "UNAVAILABLE", "acme"),
    ],
)
async def test_what_is_not_revoked_is_not_deleted(  # noqa: PLR0913, PLR0917 - a table
    world: Environment, root: Client, tmp_path: Path, said: Said, code: str, detail: str
) -> None:
    async with issued(world, root, tmp_path, [NAME, OTHER]) as (place, before, ids, made):
        state = await place.state(OTHER)
        before.instead[REVOKES] = [said]
        answer = await deleted(place.root, ids, revoke="SUPERSEDED")
        (error,) = answer["errors"]
        assert (error["code"], error.get("constraint") or error["component"]) == (code, detail)
        assert error["message"].startswith(f"{NAME} was not revoked, and nothing is deleted: ")
        assert (answer["deletedIds"], answer["revokedIds"]) == ([], [])
        assert [(await judged(place, one))[0] for one in made] == ["Valid", "Valid"]
        assert await place.state(OTHER) == state


@pytest.mark.parametrize("options", [{}, {"idempotencyKey": "k"}])
async def test_what_was_revoked_before_another_failed_says_so_and_may_be_sent_again(
    world: Environment, root: Client, tmp_path: Path, options: dict[str, str]
) -> None:
    async with issued(world, root, tmp_path, [NAME, OTHER]) as (place, _before, ids, made):
        other = update(Certificate).where(col(Certificate.server_name) == OTHER)
        async with world.write_session() as session:  # of an authority that is no more
            gone = other.values(acme_directory=f"https://localhost:{free_port()}/dir")
            await (await session.connection()).execute(gone)
        answer = await deleted(place.root, ids, revoke="SUPERSEDED", options=options)
        (error,) = answer["errors"]
        assert error["code"] == "UNAVAILABLE"
        assert error["message"].startswith(f"{OTHER} was not revoked, and nothing is deleted: ")
        assert error["message"].endswith(f"; revoked by now: {NAME}")
        assert (await judged(place, made[0]))[0] == "Revoked"
        one = await place.state()
        assert one["acmeState"].startswith("revoked on ")
        assert "SUPERSEDED, and not deleted yet" in one["acmeState"]
        answer = await deleted(place.root, ids[:1], revoke="SUPERSEDED")
        assert answer == {"deletedIds": ids[:1], "revokedIds": ids[:1], "errors": []}


async def test_what_has_ended_or_never_came_is_only_deleted(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with issued(world, root, tmp_path, [NAME]) as (place, before, ids, (made,)):
        waits = (await put(place.root, serverName=OTHER, acme=True))["certificate"]["id"]
        place.clock.by = 3000 * DAY
        answer = await deleted(place.root, [*ids, waits], revoke="SUPERSEDED")
        assert answer == {"deletedIds": [*ids, waits], "revokedIds": [], "errors": []}
        assert (await judged(place, made))[0] == "Valid"
        assert REVOKES not in [path for path, _ in before.posts]


async def test_one_that_was_renewed_meanwhile_stays(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with issued(world, root, tmp_path, [NAME]) as (place, before, ids, (made,)):
        cert, key = Signer().issue()

        async def sent() -> None:
            await put(place.root, serverName=NAME, cert=cert, privateKey=key)

        before.first[REVOKES] = sent
        (error,) = (await deleted(place.root, ids, revoke="SUPERSEDED"))["errors"]
        assert (error["code"], error["path"], error["index"]) == ("CONFLICT", ["ids"], 0)
        assert (await judged(place, made))[0] == "Revoked"
        assert (await place.state())["issuer"] == "CN=Test CA"


async def test_what_acme_has_not_made_is_not_revoked(root: Client, world: Environment) -> None:
    ours = await stored(root)
    (error,) = (await deleted(root, [ours["id"]], revoke="SUPERSEDED"))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["revoke"])  # nothing is agreed to
    await root(
        'mutation { settingSet(input: {key: "acme.termsAgreed", value: true}) { replayed } }'
    )
    acme = (await put(root, serverName=OTHER, acme=True))["certificate"]
    (error,) = (await deleted(root, [acme["id"], ours["id"]], revoke="SUPERSEDED"))["errors"]
    assert (error["code"], error["path"], error["index"]) == ("CONFLICT", ["ids"], 1)
    assert len(await rows(world, "SELECT * FROM certificates")) == 2


async def test_there_are_bounds(root: Client, world: Environment) -> None:
    ids = [
        (await put(root, serverName=f"n{nth}.example.org", acme=True))["certificate"]["id"]
        for nth in range(21)
    ]
    (error,) = (await deleted(root, ids, revoke="SUPERSEDED"))["errors"]
    assert (error["path"], error["constraint"]) == (["ids"], "max")
    both = await root.raw(
        "mutation ($input: CertificateDeleteInput!) @atomic { certificateDelete(input: $input) "
        "{ errors { code } } }",
        input={"ids": ids[:1], "revoke": "SUPERSEDED"},
    )
    assert both["data"]["certificateDelete"]["errors"] == [{"code": "FORBIDDEN_OPERATION"}]
    assert len(await rows(world, "SELECT * FROM certificates")) == 21

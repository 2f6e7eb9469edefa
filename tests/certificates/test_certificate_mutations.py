"""Certificates: set, listed, renewed and deleted, by whom, and what is refused."""

import logging
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.certificates import AcmeAccount, Certificate
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.admin import secret_rotation
from resolvers.certificates import acme_accounts, certificates
from tests.conftest import Client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.certificate_operations import (
    BEGIN,
    DAY,
    DELETE,
    LIST,
    NAME,
    ONE,
    RENEW,
    SET,
    Signer,
    pem_of_key,
    put,
    rsa_key,
    stored,
)
from tests.support.stores.counter_check import journal, rows


async def refused(client: Client, **given: Any) -> tuple[str, list[str], int | None, str | None]:
    """Code, path, index and rule of the one refusal."""
    answer = await put(client, **given)
    assert answer["certificate"] is None, given
    (error,) = answer["errors"]
    return error["code"], error["path"], error["index"], error.get("constraint")


async def test_a_certificate_is_set_read_and_deleted(root: Client, world: Environment) -> None:
    cert, key = Signer().issue([NAME, "*.example.net", "Mail.Example.ORG"])
    given = {"serverName": "MX.example.org.", "cert": cert, "privateKey": key}
    answer = await put(root, **given, description="Of mail")
    assert (answer["errors"], answer["warnings"]) == ([], [])
    one = answer["certificate"]
    assert one["serverName"] == NAME
    assert one["altNames"] == [NAME, "*.example.net", "mail.example.org"]
    assert (one["description"], one["acme"], one["acmeState"]) == ("Of mail", False, None)
    assert one["issuer"] == "CN=Test CA"
    assert (one["beginsAt"], one["expiresAt"]) == ("2029-12-01T00:00:00Z", "2030-03-01T00:00:00Z")
    assert [len(one[name]) for name in ("fingerprint", "fingerprintSha256")] == [59, 95]
    assert (await root(ONE, by={"id": one["id"]}))["certificate"] == one
    assert (await root(ONE, by={"serverName": "Mx.Example.org"}))["certificate"] == one
    for other in ("mail.example.org", "a.example.net", "example.org", "", "\1", "a b"):
        assert (await root(ONE, by={"serverName": other}))["certificate"] is None, other
    deleted = (await root(DELETE, input={"ids": [one["id"]]}))["certificateDelete"]
    assert (deleted["deletedIds"], deleted["errors"]) == ([one["id"]], [])
    assert (await root(ONE, by={"id": one["id"]}))["certificate"] is None
    assert await rows(world, "SELECT * FROM certificate_names") == []


async def test_setting_it_again_changes_what_is_said(root: Client) -> None:
    signer, mine = Signer(), rsa_key()
    cert, key = signer.issue(key=mine)
    first = await put(root, serverName=NAME, cert=cert, privateKey=key, description="A")
    later, _ = signer.issue(key=mine, days=100)
    second = await put(root, serverName=NAME, cert=later)  # a new one for the key that is there
    assert second["errors"] == []
    assert second["certificate"]["id"] == first["certificate"]["id"]
    assert second["certificate"]["description"] == "A"
    assert second["certificate"]["expiresAt"] > first["certificate"]["expiresAt"]
    third = await put(root, serverName=NAME, description="")
    same = second["certificate"] | {"description": None}
    assert third["certificate"] == same
    other, _ = signer.issue()
    assert await refused(root, serverName=NAME, cert=other) == (
        "VALIDATION", ["cert"], None, "mismatch",
    )  # fmt: skip
    assert (await put(root, serverName=NAME, acme=True))["certificate"]["acmeState"] == (
        "valid, renewed from 2030-02-09"
    )
    assert (await put(root, serverName=NAME))["certificate"]["acmeState"] is None


async def test_a_bundle_is_taken_apart_and_put_in_order(root: Client, world: Environment) -> None:
    top = Signer("Top")
    middle = Signer("Middle", top)
    lower = Signer("Lower", middle)
    cert, key = lower.issue()
    stray = Signer("Stray")
    bundle = "junk\n" + top.pem + key + "words\n" + middle.pem + cert + stray.pem + lower.pem
    answer = await put(root, serverName=NAME, cert=bundle)
    assert answer["errors"] == []
    assert answer["warnings"] == [{"code": "CERTIFICATES_LEFT_OUT", "path": ["ca"]}]
    ((chain,),) = await rows(world, "SELECT chain FROM certificates")
    assert chain == cert + lower.pem + middle.pem + top.pem
    answer = await put(root, serverName=NAME, cert=cert, privateKey=key, ca=[middle.pem, lower.pem])
    assert (answer["errors"], answer["warnings"]) == ([], [])
    ((chain,),) = await rows(world, "SELECT chain FROM certificates")
    assert chain == cert + lower.pem + middle.pem


@pytest.mark.parametrize(
    ("made", "code", "path"),
    [
        ({"names": ["other.example"]}, "NAME_NOT_IN_CERTIFICATE", "serverName"),
        ({"names": ["*.org"]}, "NAME_NOT_IN_CERTIFICATE", "serverName"),
        ({"begin": BEGIN - 100 * DAY}, "CERTIFICATE_EXPIRED", "cert"),
        ({"begin": BEGIN + 50 * DAY}, "CERTIFICATE_NOT_YET_VALID", "cert"),
        ({"clients": True}, "NOT_FOR_SERVERS", "cert"),
    ],
)
async def test_what_is_odd_is_stored_and_said(
    root: Client, made: dict[str, Any], code: str, path: str
) -> None:
    cert, key = Signer().issue(**made)
    answer = await put(root, serverName=NAME, cert=cert, privateKey=key)
    assert answer["errors"] == []
    assert answer["warnings"] == [{"code": code, "path": [path]}]


async def test_a_common_name_counts_where_there_is_no_other(root: Client) -> None:
    cert, key = Signer().issue((), common=NAME)
    answer = await put(root, serverName=NAME, cert=cert, privateKey=key)
    assert (answer["certificate"]["altNames"], answer["warnings"]) == ([NAME], [])


async def test_what_cannot_be_served_is_refused_by_field_and_rule(
    root: Client, world: Environment
) -> None:
    cert, key = Signer().issue()
    other, theirs = Signer().issue()
    curve = ec.generate_private_key(ec.SECP224R1())
    weak, weaker = Signer().issue(key=curve), Signer().issue(key=rsa_key(1024))
    locked = pem_of_key(ec.generate_private_key(ec.SECP256R1()), b"secret")
    old = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM,
        PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )
    other_kind = pem_of_key(dsa.generate_private_key(2048))
    many = "".join(Signer().pem for _ in range(21))
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for given, wanted in (
        ({}, ("VALIDATION", ["cert"], None, "required")),
        ({"cert": cert}, ("VALIDATION", ["privateKey"], None, "required")),
        ({"privateKey": key}, ("VALIDATION", ["cert"], None, "pem")),
        ({"cert": "", "privateKey": key}, ("VALIDATION", ["cert"], None, "pem")),
        ({"cert": key, "privateKey": key}, ("VALIDATION", ["cert"], None, "pem")),
        ({"cert": broken, "privateKey": key}, ("VALIDATION", ["cert"], None, "pem")),
        ({"cert": cert, "privateKey": cert}, ("VALIDATION", ["privateKey"], None, "pem")),
        ({"cert": cert, "privateKey": "\1"}, ("VALIDATION", ["privateKey"], None, "pem")),
        ({"cert": cert, "privateKey": key[:90]}, ("VALIDATION", ["privateKey"], None, "pem")),
        ({"cert": cert, "privateKey": key + theirs}, ("VALIDATION", ["privateKey"], None, "max")),
        ({"cert": cert, "privateKey": theirs}, ("VALIDATION", ["privateKey"], None, "mismatch")),
        ({"cert": other + theirs, "privateKey": key},
         ("VALIDATION", ["privateKey"], None, "mismatch")),
        ({"cert": cert, "privateKey": locked}, ("VALIDATION", ["privateKey"], None, "encrypted")),
        ({"cert": cert, "privateKey": old.decode()},
         ("VALIDATION", ["privateKey"], None, "encrypted")),
        ({"cert": weak[0], "privateKey": weak[1]}, ("VALIDATION", ["privateKey"], None, "weak")),
        ({"cert": weaker[0], "privateKey": weaker[1]},
         ("VALIDATION", ["privateKey"], None, "weak")),
        ({"cert": cert, "privateKey": other_kind}, ("VALIDATION", ["privateKey"], None, "weak")),
        ({"cert": cert + many, "privateKey": key}, ("VALIDATION", ["cert"], None, "max")),
        ({"cert": cert, "privateKey": key, "ca": [other, "x"]}, ("VALIDATION", ["ca"], 1, "pem")),
        ({"cert": cert * 200, "privateKey": key}, ("VALIDATION", ["cert"], None, "length")),
        ({"cert": cert, "privateKey": key, "description": "a\nb"},
         ("VALIDATION", ["description"], None, "length")),
        ({"cert": cert, "privateKey": key, "description": "x" * 501},
         ("VALIDATION", ["description"], None, "length")),
    ):  # fmt: skip
        assert await refused(root, serverName=NAME, **given) == wanted, given
    sent = {"cert": cert, "privateKey": key}
    for name in (
        "", "a b", "*.example.org", "a..b", "192.0.2.1", "[::1]", "x" * 300, "a\r\nb", "ä@b",
        "-a.example", "a/b", "mx.example.org:25",
    ):  # fmt: skip
        wanted = ("VALIDATION", ["serverName"], None, "domain")
        assert await refused(root, serverName=name, **sent) == wanted, name
    assert (await refused(root, serverName="localhost", acme=True))[1] == ["serverName"]
    assert await rows(world, "SELECT * FROM certificates") == []


async def test_lists_are_searched_and_paged(root: Client) -> None:
    for name, names in (
        ("a.example.org", ["a.example.org"]),
        ("b.example.org", ["b.example.org", "*.shop.example"]),
        ("c.example.net", ["c.example.net", "mail.example.org"]),
        ("per_cent.example", ["x.example"]),
    ):
        await stored(root, name, names=names)

    async def listed(**given: Any) -> list[str]:
        page = (await root(LIST, **given))["certificates"]
        assert page["totalCount"] == len(page["nodes"]) or "first" in given or "last" in given
        return [node["serverName"][:1] for node in page["nodes"]]

    assert await listed() == ["a", "b", "c", "p"]
    assert await listed(query="example.ORG") == ["a", "b"]
    assert await listed(query="example.org", altNames=True) == ["a", "b", "c"]
    assert await listed(query="www.shop.example", altNames=True) == ["b"]
    assert await listed(query="www.shop.example") == []
    assert await listed(query="r_c") == ["p"]
    assert await listed(query="%") == []
    assert await listed(last=1) == ["p"]
    seen, after = [], None
    while True:
        page = (await root(LIST, first=3, after=after))["certificates"]
        seen += [node["serverName"][:1] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert seen == ["a", "b", "c", "p"]
    answer = await root.raw(LIST, query="x" * 300)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_nobody_below_an_admin_sees_or_changes_anything(
    root: Client, ada: Client, over: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    one = await stored(root)
    clerk = await make_domain_admin(world, http, "clerk", list(AdminPermission))
    cert, key = Signer().issue()
    before = await rows(world, "SELECT * FROM certificates")
    for client in (ada, clerk):
        for document, given in (
            (LIST, {}),
            (ONE, {"by": {"id": one["id"]}}),
            (ONE, {"by": {"serverName": NAME}}),
            (SET, {"input": {"serverName": NAME, "cert": cert, "privateKey": key}}),
            (DELETE, {"input": {"ids": [one["id"]]}}),
            (RENEW, {"input": {"ids": [one["id"]]}}),
        ):
            answer = await client.raw(document, **given)
            found = answer.get("errors") or next(iter(answer["data"].values()))["errors"]
            code = found[0].get("code") or found[0]["extensions"]["code"]
            assert code == "FORBIDDEN", document
        node = await client("query ($id: ID!) { node(id: $id) { id } }", id=one["id"])
        assert node == {"node": None}
    assert await rows(world, "SELECT * FROM certificates") == before
    assert (await over(ONE, by={"id": one["id"]}))["certificate"] == one


async def test_it_is_journalled_and_logged_without_the_key(
    root: Client, world: Environment
) -> None:
    one = await stored(root)
    missing = global_ids.encode("Certificate", world.new_id())
    for document in (DELETE, RENEW):
        answer = await root(document, input={"ids": [one["id"], missing]})
        (error,) = next(iter(answer.values()))["errors"]
        assert error["code"] == "NOT_FOUND"
    answer = (await root(RENEW, input={"ids": [one["id"]]}))["certificateRenew"]
    assert answer["errors"][0]["code"] == "CONFLICT"
    await root(DELETE, input={"ids": [one["id"]]})
    entries = [one for one in await journal(world, PLATFORM) if "CERTIFICATE" in str(one)]
    assert len(entries) == 2
    log = await rows(world, "SELECT mutation, before, after FROM admin_log ORDER BY id")
    assert [entry[0] for entry in log] == ["certificateSet", "certificateDelete"]
    assert "PRIVATE" not in str(log)


async def test_keys_are_sealed_and_shown_nowhere(
    root: Client, world: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cert, key = Signer().issue()
    inner = "".join(key.splitlines()[1:-1])
    answer = await root.raw(SET, input={"serverName": NAME, "cert": cert, "privateKey": key})
    wrong = await root.raw(
        SET, input={"serverName": NAME, "cert": Signer().issue()[0], "privateKey": key}
    )
    assert wrong["data"]["certificateSet"]["errors"]
    account = await acme_accounts.load_or_create_account(world, "https://acme.example/dir")
    assert "PRIVATE" in account.private_key
    assert account.private_key not in repr(account)
    kept: list[Any] = []
    for table in ("certificates", "acme_accounts", "changes", "admin_log", "replays"):
        kept += await rows(world, f"SELECT * FROM {table}")  # noqa: S608 - ours
    for said in (str(answer), str(wrong), str(kept), caplog.text):
        assert inner[20:60] not in said
        assert "PRIVATE KEY" not in said
    (row,) = await rows(world, "SELECT id, private_key FROM certificates")
    assert world.secret_box.decrypt(row[1], certificates.encryption_context(row[0])).startswith(
        "-----BEGIN PRIV"
    )
    places = {place.table for place in secret_rotation.ENCRYPTED_COLUMNS}
    assert {Certificate, AcmeAccount} <= places


async def test_a_lost_key_is_said_to_be_lost(root: Client, world: Environment) -> None:
    signer, mine = Signer(), rsa_key()
    cert, key = signer.issue(key=mine)
    await put(root, serverName=NAME, cert=cert, privateKey=key)
    async with world.write_session() as session:
        gone = update(Certificate).values(private_key="deadbeef.AAAA")
        await (await session.connection()).execute(gone.where(col(Certificate.id) > 0))
    answer = await put(root, serverName=NAME, cert=signer.issue(key=mine)[0])
    assert [error["code"] for error in answer["errors"]] == ["UNAVAILABLE"]
    answer = await put(root, serverName=NAME, cert=cert, privateKey=key)
    assert answer["errors"] == []


async def test_what_acme_makes_waits_for_its_terms(root: Client, world: Environment) -> None:
    answer = await put(root, serverName="Bücher.example", acme=True)
    one = answer["certificate"]
    assert (answer["errors"], one["serverName"]) == ([], "xn--bcher-kva.example")
    assert one["acmeState"] == certificates.STATE_TERMS_NOT_AGREED
    assert [one[name] for name in ("fingerprint", "expiresAt", "issuer")] == [None] * 3
    assert (await root(ONE, by={"serverName": "bücher.example"}))["certificate"] == one
    answer = (await root(RENEW, input={"ids": [one["id"]]}))["certificateRenew"]
    assert answer["errors"] == []
    assert ChangeKind.CERTIFICATE_CHANGED == "CERTIFICATE_CHANGED"
    assert world.options.acme_terms_agreed is False


async def test_a_dry_run_keeps_nothing(root: Client, world: Environment) -> None:
    cert, key = Signer().issue()
    given = {"serverName": NAME, "cert": cert, "privateKey": key}
    answer = await put(root, **given, options={"validateOnly": True})
    assert answer["errors"] == []
    assert await rows(world, "SELECT * FROM certificates") == []

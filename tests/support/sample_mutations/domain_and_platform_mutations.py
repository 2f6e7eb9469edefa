"""Calls about domains, rules, rewrites, settings, the search index, work and webhooks."""

from graph.types import global_ids
from models.admin.tasks import Task
from tests.conftest import Client, receive
from tests.support.sample_mutations.mutation_call import CALLS, Call, call

RULE = {"match": "@example.org", "bccTo": "archive@example.com", "direction": "RECIPIENT"}
REWRITE = {"from": "@old.example", "to": "@example.org"}


@call
async def bcc_rule_create(_ada: Client, _root: Client) -> Call:
    return Call("bccRuleCreate", RULE, "bccRule { match bccTo direction }", by_root=True)


@call
async def bcc_rule_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "bccRule", RULE)]}
    return Call("bccRuleDelete", given, "deletedIds", by_root=True)


@call
async def bcc_rule_update(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "bccRule", RULE)], "bccTo": "other@example.com"}
    return Call("bccRuleUpdate", given, "bccRules { bccTo }", by_root=True)


@call
async def recipient_rewrite_create(_ada: Client, _root: Client) -> Call:
    return Call("recipientRewriteCreate", REWRITE, "recipientRewrite { from to }", by_root=True)


@call
async def recipient_rewrite_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _made(root, "recipientRewrite", REWRITE)]}
    return Call("recipientRewriteDelete", given, "deletedIds", by_root=True)


@call
async def recipient_rewrite_update(_ada: Client, root: Client) -> Call:
    key = await _made(root, "recipientRewrite", REWRITE)
    given = {"ids": [key], "to": "info@example.org"}
    return Call("recipientRewriteUpdate", given, "recipientRewrites { to }", by_root=True)


async def _made(root: Client, kind: str, given: dict[str, str]) -> str:
    made = await Call(f"{kind}Create", given, f"{kind} {{ id }}")(root)
    return str(made[kind]["id"])


@call
async def domain_alias_create(_ada: Client, _root: Client) -> Call:
    given = {"alias": "example.net", "domain": "example.org"}
    return Call("domainAliasCreate", given, "domainAlias { alias }", by_root=True)


@call
async def domain_alias_delete(ada: Client, root: Client) -> Call:
    create = await domain_alias_create(ada, root)
    made = await Call(create.name, create.input, "domainAlias { id }")(root)
    given = {"ids": [made["domainAlias"]["id"]]}
    return Call("domainAliasDelete", given, "deletedIds", by_root=True)


@call
async def domain_create(_ada: Client, _root: Client) -> Call:
    return Call("domainCreate", {"name": "new.example"}, "domain { name }", by_root=True)


@call
async def domain_delete(ada: Client, root: Client) -> Call:
    await (await domain_create(ada, root))(root)
    given = {"domains": [{"name": "new.example"}]}
    return Call("domainDelete", given, "deletedIds", by_root=True)


@call
async def domain_rename(_ada: Client, _root: Client) -> Call:
    given = {"oldDomain": "example.org", "newDomain": "renamed.example"}
    payload = "domain { name } addressesUpdated usersUpdated domainAliasesUpdated"
    return Call("domainRename", given, payload, by_root=True)


@call
async def domain_update(_ada: Client, _root: Client) -> Call:
    given = {"domains": [{"name": "example.org"}], "set": {"description": "Ours"}}
    return Call("domainUpdate", given, "domains { name description }", by_root=True)


@call
async def search_index_build(ada: Client, _root: Client) -> Call:
    await receive(ada, "Waits")
    given = {"users": {"usernames": ["ada"]}, "mailboxMasks": ["*"]}
    return Call("searchIndexBuild", given, "indexed", journaled=False, by_root=True)


@call
async def search_index_optimize(_ada: Client, _root: Client) -> Call:
    return Call("searchIndexOptimize", {}, "task { kind }", by_root=True)


@call
async def search_index_rebuild(_ada: Client, _root: Client) -> Call:
    given = {"users": {"usernames": ["ada"]}}
    return Call("searchIndexRebuild", given, "task { kind total }", by_root=True)


@call
async def sender_rule_create(ada: Client, root: Client) -> Call:
    await CALLS["senderRuleDelete"](ada, root)  # one that is turned
    given = {"scope": {"user": {"username": "ada"}}, "action": "BLOCK"}
    patterns = ["*@Shop.example", "eve@example.com"]
    return Call("senderRuleCreate", {**given, "patterns": patterns}, "rules { pattern action }")


@call
async def sender_rule_delete(ada: Client, _root: Client) -> Call:
    given = {"scope": {"user": {"username": "ada"}}, "action": "ALLOW", "comment": "Mine"}
    made = await Call("senderRuleCreate", {**given, "patterns": ["shop.example"]}, "rules { id }")(
        ada
    )
    return Call("senderRuleDelete", {"ids": [made["rules"][0]["id"]]}, "deletedIds")


@call
async def setting_delete(ada: Client, root: Client) -> Call:
    done = await (await setting_set(ada, root))(root)
    assert done["errors"] == []
    given = {"keys": ["submission.maxRecipients"]}
    return Call("settingDelete", given, "settings { key value custom }", by_root=True)


@call
async def setting_set(_ada: Client, _root: Client) -> Call:
    given = {"key": "submission.maxRecipients", "value": 50}
    return Call("settingSet", given, "setting { key value custom }", by_root=True)


@call
async def task_cancel(ada: Client, _root: Client) -> Call:
    key = ada.world.new_id()
    async with ada.world.write_session() as session:
        session.add(
            Task(
                id=key,
                kind="MESSAGE_UPDATE",
                user_id=ada.user.id,
                order={"ids": []},
                created_at=ada.world.now(),
            )
        )
    return Call("taskCancel", {"ids": [global_ids.encode("Task", key)]}, "tasks { state }")


@call
async def webhook_create(_ada: Client, _root: Client) -> Call:
    given = {"url": "https://hooks.example.com/", "types": ["user.*"]}
    return Call("webhookCreate", given, "webhook { url }", journaled=False, by_root=True)


@call
async def webhook_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)]}
    return Call("webhookDelete", given, "deletedIds", journaled=False, by_root=True)


@call
async def webhook_replay(_ada: Client, root: Client) -> Call:
    given = {"webhook": await _webhook(root), "after": "1.0.0"}
    return Call("webhookReplay", given, "task { kind }", by_root=True)


@call
async def webhook_secret_rotate(_ada: Client, root: Client) -> Call:
    given = {"id": await _webhook(root)}
    return Call("webhookSecretRotate", given, "webhook { id }", journaled=False, by_root=True)


@call
async def webhook_test(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)]}
    return Call("webhookTest", given, "webhooks { id }", journaled=False, by_root=True)


@call
async def webhook_update(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)], "active": False}
    return Call("webhookUpdate", given, "webhooks { active }", journaled=False, by_root=True)


async def _webhook(root: Client) -> str:
    made = await Call(
        "webhookCreate",
        {"url": "https://hooks.example.com/", "types": ["user.*"]},
        "webhook { id }",
    )(root)
    return str(made["webhook"]["id"])

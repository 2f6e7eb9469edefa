"""Sample calls of mutations of domains, rules, settings, the search index, tasks and webhooks."""

from graph.types import global_ids
from models.admin.tasks import Task, TaskKind
from tests.conftest import GraphQLClient, deliver_to
from tests.support.sample_mutations.mutation_call import SAMPLE_CALLS, MutationCall, register_call

BCC_RULE_INPUT = {"match": "@example.org", "bccTo": "archive@example.com", "direction": "RECIPIENT"}
REWRITE_INPUT = {"from": "@old.example", "to": "@example.org"}


@register_call
async def bcc_rule_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "bccRuleCreate", BCC_RULE_INPUT, "bccRule { match bccTo direction }", by_root=True
    )


@register_call
async def bcc_rule_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"bccRules": [{"id": await _create_object(root, "bccRule", BCC_RULE_INPUT)}]}
    return MutationCall("bccRuleDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def bcc_rule_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "bccRules": [{"id": await _create_object(root, "bccRule", BCC_RULE_INPUT)}],
        "set": {"bccTo": "other@example.com"},
    }
    return MutationCall("bccRuleUpdate", input_fields, "bccRules { bccTo }", by_root=True)


@register_call
async def recipient_rewrite_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "recipientRewriteCreate", REWRITE_INPUT, "recipientRewrite { from to }", by_root=True
    )


@register_call
async def recipient_rewrite_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    rewrite_id = await _create_object(root, "recipientRewrite", REWRITE_INPUT)
    input_fields = {"recipientRewrites": [{"id": rewrite_id}]}
    return MutationCall("recipientRewriteDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def recipient_rewrite_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    rewrite_id = await _create_object(root, "recipientRewrite", REWRITE_INPUT)
    input_fields = {"recipientRewrites": [{"id": rewrite_id}], "set": {"to": "info@example.org"}}
    return MutationCall(
        "recipientRewriteUpdate", input_fields, "recipientRewrites { to }", by_root=True
    )


async def _create_object(root: GraphQLClient, field_name: str, input_fields: dict[str, str]) -> str:
    payload = await MutationCall(f"{field_name}Create", input_fields, f"{field_name} {{ id }}")(
        root
    )
    return str(payload[field_name]["id"])


@register_call
async def alias_domain_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"alias": "example.net", "domain": {"name": "example.org"}}
    return MutationCall("aliasDomainCreate", input_fields, "aliasDomain { alias }", by_root=True)


@register_call
async def alias_domain_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    create = await alias_domain_create(ada, root)
    payload = await MutationCall(create.name, create.input, "aliasDomain { id }")(root)
    input_fields = {"aliasDomains": [{"id": payload["aliasDomain"]["id"]}]}
    return MutationCall("aliasDomainDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def domain_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("domainCreate", {"name": "new.example"}, "domain { name }", by_root=True)


@register_call
async def domain_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await domain_create(ada, root))(root)
    input_fields = {"domains": [{"name": "new.example"}]}
    return MutationCall("domainDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def domain_rename(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"domain": {"name": "example.org"}, "newName": "renamed.example"}
    payload = "domain { name } addressCount userCount aliasDomainCount"
    return MutationCall("domainRename", input_fields, payload, by_root=True)


@register_call
async def domain_update(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"domains": [{"name": "example.org"}], "set": {"description": "Ours"}}
    return MutationCall("domainUpdate", input_fields, "domains { name description }", by_root=True)


@register_call
async def search_index_build(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await deliver_to(ada, "Waits")
    input_fields = {"users": {"usernames": ["ada"]}, "mailboxPatterns": ["*"]}
    return MutationCall(
        "searchIndexBuild", input_fields, "indexedCount", journaled=False, by_root=True
    )


@register_call
async def search_index_optimize(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("searchIndexOptimize", {}, "task { kind }", by_root=True)


@register_call
async def search_index_rebuild(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"usernames": ["ada"]}}
    return MutationCall(
        "searchIndexRebuild", input_fields, "task { kind totalCount }", by_root=True
    )


@register_call
async def sender_rule_create(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await SAMPLE_CALLS["senderRuleDelete"](ada, root)  # this rule is changed from ALLOW to BLOCK
    input_fields = {"scope": {"user": {"username": "ada"}}, "action": "BLOCK"}
    patterns = ["*@Shop.example", "eve@example.com"]
    return MutationCall(
        "senderRuleCreate", {**input_fields, "patterns": patterns}, "senderRules { pattern action }"
    )


@register_call
async def sender_rule_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"scope": {"user": {"username": "ada"}}, "action": "ALLOW", "comment": "Mine"}
    payload = await MutationCall(
        "senderRuleCreate", {**input_fields, "patterns": ["shop.example"]}, "senderRules { id }"
    )(ada)
    return MutationCall(
        "senderRuleDelete", {"senderRules": [{"id": payload["senderRules"][0]["id"]}]}, "deletedIds"
    )


@register_call
async def setting_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await setting_set(ada, root))(root)
    assert payload["errors"] == []
    input_fields = {"settings": [{"key": "submission.maxRecipients"}]}
    return MutationCall(
        "settingDelete", input_fields, "settings { key value custom }", by_root=True
    )


@register_call
async def setting_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"key": "submission.maxRecipients", "value": 50}
    return MutationCall("settingSet", input_fields, "setting { key value custom }", by_root=True)


@register_call
async def task_cancel(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    task_id = ada.environment.new_id()
    async with ada.environment.write_session() as session:
        session.add(
            Task(
                id=task_id,
                kind=TaskKind.MESSAGE_UPDATE,
                user_id=ada.user.id,
                order={"ids": []},
                created_at=ada.environment.now(),
            )
        )
    return MutationCall(
        "taskCancel", {"tasks": [{"id": global_ids.encode("Task", task_id)}]}, "tasks { state }"
    )


@register_call
async def webhook_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"url": "https://hooks.example.com/", "types": ["USER_CREATED"]}
    return MutationCall(
        "webhookCreate", input_fields, "webhook { url }", journaled=False, by_root=True
    )


@register_call
async def webhook_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"webhooks": [{"id": await _create_webhook(root)}]}
    return MutationCall("webhookDelete", input_fields, "deletedIds", journaled=False, by_root=True)


@register_call
async def webhook_replay(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"webhook": {"id": await _create_webhook(root)}, "after": "1.0.0"}
    return MutationCall("webhookReplay", input_fields, "task { kind }", by_root=True)


@register_call
async def webhook_secret_rotate(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"webhook": {"id": await _create_webhook(root)}}
    return MutationCall(
        "webhookSecretRotate", input_fields, "webhook { id }", journaled=False, by_root=True
    )


@register_call
async def webhook_test(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"webhooks": [{"id": await _create_webhook(root)}]}
    return MutationCall(
        "webhookTest", input_fields, "webhooks { id }", journaled=False, by_root=True
    )


@register_call
async def webhook_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "webhooks": [{"id": await _create_webhook(root)}],
        "set": {"active": False},
    }
    return MutationCall(
        "webhookUpdate", input_fields, "webhooks { active }", journaled=False, by_root=True
    )


async def _create_webhook(root: GraphQLClient) -> str:
    payload = await MutationCall(
        "webhookCreate",
        {"url": "https://hooks.example.com/", "types": ["USER_CREATED"]},
        "webhook { id }",
    )(root)
    return str(payload["webhook"]["id"])

"""SCIM representations of accounts and groups, with IDs, URLs and versions."""

from collections.abc import Collection, Mapping
from typing import Any

from scim2_models import Context as ScimContext
from scim2_models import Meta, Reference, ResponseParameters

from graph.types import global_ids
from models.errors import InvalidInput
from resolvers.scim.accounts import ScimAccount, account_resource, resource_version
from resolvers.scim.groups import ScimGroupWithMembers, group_version
from resolvers.scim.resources import (
    GROUP,
    GROUP_SCHEMA,
    MEMBER_TYPE,
    USER,
    AccountGroupAttribute,
    GroupResource,
)
from resolvers.scim.search_parameters import ScimIds

LIST_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
GROUP_ID_PREFIX = "grp_"  # groups are no objects of the GraphQL schema
USER_ID_PREFIX = "usr_"
MEMBERS = "members"


def encode_user_id(user_id: int) -> str:
    """Return the ID of a user, which is its global ID."""
    return str(global_ids.encode("User", user_id))


def encode_group_id(group_id: int) -> str:
    """Return the ID of a group: that of a user with another prefix."""
    return GROUP_ID_PREFIX + encode_user_id(group_id).removeprefix(USER_ID_PREFIX)


def decode_user_id(text: str) -> int | None:
    """Return the row key of a user ID, or None if the text is none."""
    try:
        return global_ids.decode("User", text)
    except InvalidInput:
        return None


def decode_group_id(text: str) -> int | None:
    """Return the row key of a group ID, or None if the text is none."""
    if not text.startswith(GROUP_ID_PREFIX):
        return None
    return decode_user_id(USER_ID_PREFIX + text.removeprefix(GROUP_ID_PREFIX))


SCIM_IDS = ScimIds(decode_user_id, decode_group_id)


def entity_tag(version: str) -> str:
    """Return the weak entity tag of a version."""
    return f'W/"{version}"'


def account_location(base_url: str, user_id: int) -> str:
    """Return the URL of an account."""
    return f"{base_url}/Users/{encode_user_id(user_id)}"


def group_location(base_url: str, group_id: int) -> str:
    """Return the URL of a group."""
    return f"{base_url}/Groups/{encode_group_id(group_id)}"


def account_json(
    account: ScimAccount,
    base_url: str,
    parameters: ResponseParameters[Any] | None = None,
    version: str | None = None,
) -> dict[str, Any]:
    """Return the representation of an account with the selected attributes.

    `version` is its `account_version` if it is known already.
    """
    row, resource = account.row, account_resource(account)
    version = version or resource_version(row, resource)
    resource.id = encode_user_id(row.id)
    resource.groups = [
        AccountGroupAttribute(
            value=encode_group_id(group.id),
            ref=Reference(group_location(base_url, group.id)),
            display=group.display_name,
            type="direct",
        )
        for group in account.groups
    ] or None
    resource.meta = Meta(
        resource_type=USER,
        created=row.created_at,
        last_modified=row.updated_at,
        location=account_location(base_url, row.id),
        version=entity_tag(version),
    )
    return resource.model_dump(
        scim_ctx=ScimContext.RESOURCE_QUERY_RESPONSE, response_parameters=parameters
    )


def group_json(
    group: ScimGroupWithMembers,
    base_url: str,
    parameters: ResponseParameters[Any] | None = None,
) -> dict[str, Any]:
    """Return the representation of a group with the selected attributes.

    The members are added as plain values, since a group can have thousands.
    """
    row = group.row
    resource = GroupResource(
        id=encode_group_id(row.id),
        external_id=row.external_id,
        display_name=row.display_name,
        meta=Meta(
            resource_type=GROUP,
            created=row.created_at,
            last_modified=row.updated_at,
            location=group_location(base_url, row.id),
            version=entity_tag(group_version(group)),
        ),
    )
    body = resource.model_dump(
        scim_ctx=ScimContext.RESOURCE_QUERY_RESPONSE, response_parameters=parameters
    )
    names = member_attributes_to_return(parameters)
    if names and group.member_ids:
        body[MEMBERS] = [_member_json(base_url, key, names) for key in group.member_ids]
    return body


def _member_json(base_url: str, user_id: int, names: Collection[str]) -> Mapping[str, str]:
    member = {
        "value": encode_user_id(user_id),
        "$ref": account_location(base_url, user_id),
        "type": MEMBER_TYPE,
    }
    return {name: text for name, text in member.items() if name in names}


def member_attributes_to_return(parameters: ResponseParameters[Any] | None) -> frozenset[str]:
    """Return which attributes of members a response has; none if it has no members."""
    all_names = frozenset({"value", "$ref", "type"})
    if parameters is None:
        return all_names
    if parameters.attributes:
        selected = _attribute_names_below_members(parameters.attributes)
        return all_names if "" in selected else all_names & selected
    excluded = _attribute_names_below_members(parameters.excluded_attributes or ())
    return frozenset() if "" in excluded else all_names - excluded


def _attribute_names_below_members(paths: Collection[Any]) -> frozenset[str]:
    """Return the names below `members` in a list of attributes; "" is the attribute itself."""
    names = set()
    for path in paths:
        text = str(path)
        if text.lower().startswith(f"{GROUP_SCHEMA.lower()}:"):
            text = text[len(GROUP_SCHEMA) + 1 :]
        head, _, tail = text.partition(".")
        if head.lower() == MEMBERS:
            names.add(tail)
    return frozenset(names)


def list_json(
    total_count: int, start_index: int, resources: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a ListResponse with one page of resources."""
    return {
        "schemas": [LIST_SCHEMA],
        "totalResults": total_count,
        "startIndex": start_index,
        "itemsPerPage": len(resources),
        "Resources": resources,
    }

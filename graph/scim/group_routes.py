"""The endpoints /Groups of SCIM."""

from collections.abc import Callable, Mapping
from typing import Any

from scim2_models import InvalidValueException, ResponseParameters
from starlette.responses import Response

from graph.scim.errors import not_modified_response, resource_response, scim_response
from graph.scim.queries import load_group_page_and_charge
from graph.scim.representation import (
    SCIM_IDS,
    decode_group_id,
    entity_tag,
    group_json,
    group_location,
    list_json,
    member_attributes_to_return,
)
from graph.scim.requests import (
    ScimQuery,
    if_match_version_check,
    is_version_known,
    member_of_object,
    parse_query_from_url,
    query_from_body,
    read_json_object,
    response_parameters,
)
from graph.scim.service import ScimCall
from resolvers.scim.group_changes import (
    GroupState,
    MemberCharge,
    change_group,
    create_group,
    delete_group,
)
from resolvers.scim.group_patch import group_patch_from_json, member_ids_from_json
from resolvers.scim.groups import (
    ScimGroupWithMembers,
    group_version,
    require_group,
)
from resolvers.scim.resources import GroupResource


async def list_groups(call: ScimCall) -> Response:
    """Respond with a page of groups."""
    return await _respond_with_page(call, parse_query_from_url(call.request))


async def search_groups(call: ScimCall) -> Response:
    """Respond with a page of groups that a SearchRequest selects."""
    return await _respond_with_page(call, query_from_body(await read_json_object(call.request)))


async def _respond_with_page(call: ScimCall, query: ScimQuery) -> Response:
    parameters = response_parameters(GroupResource, query)
    has_members = bool(member_attributes_to_return(parameters))
    page = await load_group_page_and_charge(call, query.search, with_members=has_members)
    resources = [group_json(group, call.base_url, parameters) for group in page.groups]
    return scim_response(list_json(page.total_count, query.search.start_index, resources))


async def create_group_from_body(call: ScimCall) -> Response:
    """Create a group and respond with it."""
    parameters = _parameters(call)
    state = _parse_group_state(await read_json_object(call.request))
    has_members = bool(member_attributes_to_return(parameters))
    charge = _member_charge(call, with_members=has_members)
    group_id = await create_group(call.ctx, state, charge)
    group = await _load_shown_group(call, group_id, parameters)
    location = group_location(call.base_url, group_id)
    return _group_response(call, group, parameters, 201, location)


def _parse_group_state(body: Mapping[str, Any]) -> GroupState:
    """Return the group of a request body. Raises InvalidValueException for wrong types."""
    texts = {}
    for name in ("displayName", "externalId"):
        texts[name] = member_of_object(body, name)
        if texts[name] is not None and not isinstance(texts[name], str):
            raise InvalidValueException(detail=f"{name} must be a text.")
    members = member_of_object(body, "members")
    if members is not None and not isinstance(members, list):
        raise InvalidValueException(detail="members must be a list.")
    member_ids = member_ids_from_json(members or [], SCIM_IDS)
    return GroupState(texts["displayName"], texts["externalId"], frozenset(member_ids))


async def serve_group(call: ScimCall) -> Response:
    """Respond with a group, or with status 304 if the client has its version."""
    parameters = _parameters(call)
    group = await _load_shown_group(call, _group_id(call), parameters)
    call.charge_members(len(group.member_ids))
    if is_version_known(call.request, version := group_version(group)):
        return not_modified_response(entity_tag(version))
    return _group_response(call, group, parameters)


async def replace_group(call: ScimCall) -> Response:
    """Replace a group and respond with it."""
    parameters = _parameters(call)
    state = _parse_group_state(await read_json_object(call.request))
    has_members = bool(member_attributes_to_return(parameters))
    await _change(call, lambda _present: state, with_members=has_members)
    group = await _load_shown_group(call, _group_id(call), parameters)
    return _group_response(call, group, parameters)


async def patch_group(call: ScimCall) -> Response:
    """Apply the operations of a PATCH to a group.

    The response has the group if the request selects attributes (RFC 7644, section 3.5.2): a
    directory adds the members of a large group one by one, and needs none of the others.
    """
    query = parse_query_from_url(call.request)
    parameters = response_parameters(GroupResource, query)
    operations = member_of_object(await read_json_object(call.request), "Operations")
    patch = group_patch_from_json(operations, SCIM_IDS)
    is_shown = bool(query.attributes or query.excluded_attributes)
    has_members = is_shown and bool(member_attributes_to_return(parameters))
    await _change(call, patch.apply, with_members=has_members)
    if not is_shown:
        group = await require_group(call.ctx, _group_id(call), with_members=False)
        return Response(status_code=204, headers={"ETag": entity_tag(group_version(group))})
    group = await _load_shown_group(call, _group_id(call), parameters)
    return _group_response(call, group, parameters)


async def _change(
    call: ScimCall, change: Callable[[GroupState], GroupState], *, with_members: bool
) -> None:
    """Change a group. `with_members` is true if the response has the members."""
    charge = _member_charge(call, with_members=with_members)
    await change_group(
        call.ctx, _group_id(call), change, if_match_version_check(call.request), charge
    )


def _member_charge(call: ScimCall, *, with_members: bool) -> MemberCharge:
    """Return the function that charges for changed members, and for those in the response."""

    def charge(changed_count: int, total_count: int) -> None:
        call.charge_members(changed_count + (total_count if with_members else 0))

    return charge


async def _load_shown_group(
    call: ScimCall, group_id: int | None, parameters: ResponseParameters[Any]
) -> ScimGroupWithMembers:
    """Load a group, with its members only if the response shows them."""
    has_members = bool(member_attributes_to_return(parameters))
    return await require_group(call.ctx, group_id, with_members=has_members)


async def delete_group_of_path(call: ScimCall) -> Response:
    """Delete a group."""
    await delete_group(call.ctx, _group_id(call), if_match_version_check(call.request))
    return Response(status_code=204)


def _group_id(call: ScimCall) -> int | None:
    return decode_group_id(call.request.path_params["id"])


def _parameters(call: ScimCall) -> ResponseParameters[Any]:
    return response_parameters(GroupResource, parse_query_from_url(call.request))


def _group_response(
    call: ScimCall,
    group: ScimGroupWithMembers,
    parameters: ResponseParameters[Any],
    status: int = 200,
    location: str | None = None,
) -> Response:
    body = group_json(group, call.base_url, parameters)
    return resource_response(body, entity_tag(group_version(group)), status, location)

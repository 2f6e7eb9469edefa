"""The endpoints of SCIM by the path of their route."""

from collections.abc import Mapping
from dataclasses import replace

from scim2_models import NotFoundException, NotImplementedException
from starlette.responses import Response

from graph.scim import discovery_routes, group_routes, user_routes
from graph.scim.errors import scim_response
from graph.scim.queries import load_account_page_and_charge, load_group_page_and_charge
from graph.scim.representation import (
    account_json,
    group_json,
    list_json,
    member_attributes_to_return,
)
from graph.scim.requests import query_from_body, read_json_object, response_parameters
from graph.scim.route_table import METHODS, ScimEndpoint
from graph.scim.service import ScimCall, ScimHandler, ScimService, scim_endpoint
from resolvers.scim.resources import AccountResource, GroupResource
from resolvers.scim.search_parameters import next_type_search

HANDLERS: dict[str, dict[str, ScimHandler]] = {
    "/ServiceProviderConfig": {"GET": discovery_routes.serve_service_provider_config},
    "/Schemas": {"GET": discovery_routes.list_schemas},
    "/Schemas/{id}": {"GET": discovery_routes.serve_schema},
    "/ResourceTypes": {"GET": discovery_routes.list_resource_types},
    "/ResourceTypes/{id}": {"GET": discovery_routes.serve_resource_type},
    "/Users": {"GET": user_routes.list_accounts, "POST": user_routes.create_account_from_body},
    "/Users/{id}": {
        "GET": user_routes.serve_account,
        "PUT": user_routes.replace_account,
        "PATCH": user_routes.patch_account,
        "DELETE": user_routes.delete_account_of_path,
    },
    "/Groups": {"GET": group_routes.list_groups, "POST": group_routes.create_group_from_body},
    "/Groups/{id}": {
        "GET": group_routes.serve_group,
        "PUT": group_routes.replace_group,
        "PATCH": group_routes.patch_group,
        "DELETE": group_routes.delete_group_of_path,
    },
}


def scim_endpoints(service: ScimService) -> Mapping[str, ScimEndpoint]:
    """Return the endpoint of each path in graph/scim/route_table.py."""
    searches: dict[str, ScimHandler] = {
        "/Users/.search": user_routes.search_accounts,
        "/Groups/.search": group_routes.search_groups,
        "/.search": search_all_resources,
    }
    refusals = {"/Me": _refuse_unsupported, "/Bulk": _refuse_unsupported}
    refusals["/{path:path}"] = _refuse_unknown_path
    handlers = HANDLERS | {
        path: dict.fromkeys(METHODS, refusal) for path, refusal in refusals.items()
    }
    return {
        path: scim_endpoint(service, {"POST": handler}, reads_by_post=True)
        for path, handler in searches.items()
    } | {path: scim_endpoint(service, by_method) for path, by_method in handlers.items()}


async def search_all_resources(call: ScimCall) -> Response:
    """Respond with a page of the accounts and groups that a SearchRequest selects.

    Accounts come before groups.
    """
    query = query_from_body(await read_json_object(call.request))
    search = replace(query.search, of_all_types=True)
    account_parameters = response_parameters(AccountResource, query)
    group_parameters = response_parameters(GroupResource, query)
    accounts = await load_account_page_and_charge(call, search)
    group_search = next_type_search(search, accounts.total_count, len(accounts.accounts))
    has_members = bool(member_attributes_to_return(group_parameters))
    groups = await load_group_page_and_charge(call, group_search, with_members=has_members)
    resources = [
        *(account_json(item, call.base_url, account_parameters) for item in accounts.accounts),
        *(group_json(item, call.base_url, group_parameters) for item in groups.groups),
    ]
    total_count = accounts.total_count + groups.total_count
    return scim_response(list_json(total_count, search.start_index, resources))


async def _refuse_unsupported(call: ScimCall) -> Response:
    """Raise NotImplementedException, which is the status 501."""
    raise NotImplementedException(detail=f"{call.request.url.path} is not supported.")


async def _refuse_unknown_path(call: ScimCall) -> Response:
    """Raise NotFoundException."""
    raise NotFoundException(detail=f"There is no endpoint {call.request.url.path}.")

"""Running tasks."""

from typing import Any

from resolvers.admin import tasks
from tests.conftest import GraphQLClient

TASK_QUERY = "query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount result error } }"


async def run_task(client: GraphQLClient, task: Any) -> Any:
    """Run all due tasks and return the task with its state."""
    while await tasks.run_next_task(client.environment):
        pass
    return (await client(TASK_QUERY, id=task["id"]))["task"]

"""Scripts in Sieve for tests."""

from models.sieve import SieveScript
from tests.conftest import Client


async def put(client: Client, text: str, *, name: str = "main", activate: bool = True) -> None:
    """Give an account a script."""
    now = client.world.now()
    async with client.world.write(client.user.id) as session:
        session.add(
            SieveScript(
                id=client.world.key(),
                user_id=client.user.id,
                name=name,
                content=text,
                size=len(text.encode()),
                active=activate,
                created_at=now,
                updated_at=now,
            )
        )

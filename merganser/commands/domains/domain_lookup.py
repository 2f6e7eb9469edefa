"""Load domains by the names in the arguments and options of commands."""

from merganser.errors import CommandError
from models.store.columns import ColumnRow
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders


async def load_domain(ctx: Context, name: str) -> ColumnRow:
    """Load a domain by name. Raises CommandError if there is none."""
    row = await domain_loaders.find_administered_domain(ctx, name)
    if row is None:
        raise CommandError(f"Domain not found: {name}. `merganser domain list` lists all domains.")
    return row

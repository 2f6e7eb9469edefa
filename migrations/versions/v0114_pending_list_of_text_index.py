"""Let the text index of PostgreSQL collect the words of several messages before it merges them."""

from alembic import op

revision = "0114"
down_revision = "0113"
expand_only = True


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX ix_search_words_words SET (fastupdate = on)")

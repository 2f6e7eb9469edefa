"""the function by which PostgreSQL compares texts in searches"""

import sqlalchemy as sa
from alembic import op

from models.store import text_folding

revision = "0056"
down_revision = "0055"


def upgrade() -> None:
    bind = op.get_bind()
    if bind.dialect.name != "postgresql":
        return
    usable = "collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))"
    known = bind.execute(sa.text(f"SELECT collname FROM pg_collation WHERE {usable}"))  # noqa: S608
    names = set(known.scalars())
    collation = next(name for name in text_folding.COLLATIONS if name in names)
    bind.exec_driver_sql(text_folding.create_fold_text_function_sql(collation))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(text_folding.DROP_FUNCTION)

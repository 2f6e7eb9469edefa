"""Table of the components that an operator has stopped or started."""

from sqlmodel import Field, SQLModel

from models.store.columns import Timestamp

ALL_NODES = ""  # value of `ComponentHold.node`


class ComponentHold(SQLModel, table=True):
    """Whether an operator has stopped a component on one node or on all nodes.

    A row of a node has precedence over the row of all nodes. A component without a row runs.
    """

    __tablename__ = "component_holds"

    component: str = Field(primary_key=True)
    node: str = Field(primary_key=True)  # host:port, or ALL_NODES
    is_stopped: bool
    changed_at: Timestamp

"""Rules that text must pass. Rule: a new one is a file in this folder and its name in `AnyFilter`."""

from typing import Annotated

from pydantic import Field

from langext.data.filters.length import Length
from langext.data.filters.web import Web

AnyFilter = Annotated[
    Length
    | Web,
    Field(discriminator="name"),
]  # fmt: skip
"""One of the filters; `name:` in the pipeline file says which."""

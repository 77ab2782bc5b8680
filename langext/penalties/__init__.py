"""Penalties that can be added to any training. Adding one: write a file here and add its name to `AnyPenalty`."""

from typing import Annotated

from pydantic import Field

from langext.penalties.domain_ce import DomainCE
from langext.penalties.l2sp import L2SP
from langext.penalties.ldifs import LDIFS
from langext.penalties.local import Local

AnyPenalty = Annotated[Local | DomainCE | LDIFS | L2SP, Field(discriminator="name")]

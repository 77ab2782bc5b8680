"""Penalties that can be added to a training. To add one, write a file here and add its class to `AnyPenalty`."""

from typing import Annotated

from pydantic import Field

from langext.methods.penalties.domain_ce import DomainCE
from langext.methods.penalties.l2sp import L2SP
from langext.methods.penalties.ldifs import LDIFS
from langext.methods.penalties.local import Local

AnyPenalty = Annotated[Local | DomainCE | LDIFS | L2SP, Field(discriminator="name")]

"""The methods that extend a model. Adding one: write a file here and add its name to `AnyMethod`."""

from typing import Annotated

from pydantic import Field

from langext.methods.full import Full
from langext.methods.neutral_residues import NeutralResidues

AnyMethod = Annotated[NeutralResidues | Full, Field(discriminator="name")]

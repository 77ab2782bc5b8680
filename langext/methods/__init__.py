"""The methods that extend a model. To add one, write a file here and add its class to `AnyMethod`."""

from typing import Annotated

from pydantic import Field

from langext.methods.adapter import Adapter
from langext.methods.expansion_blocks import ExpansionBlocks
from langext.methods.full import Full
from langext.methods.gated_lora import GatedLora
from langext.methods.grow import Grow
from langext.methods.lora import Lora
from langext.methods.neutral_residues import NeutralResidues
from langext.methods.selective_lora import SelectiveLora

AnyMethod = Annotated[
    NeutralResidues | Adapter | Lora | SelectiveLora | GatedLora | Grow | ExpansionBlocks | Full, Field(discriminator="name")
]

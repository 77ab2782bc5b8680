from typing import Literal
from langext.artifacts import Model, Checkpoint
from langext.stage import Context, Stage
class Export(Stage):
    uses: Literal["export"]
    def run(self, ctx: Context, model: Model) -> Checkpoint:
        return Checkpoint(ctx.out)

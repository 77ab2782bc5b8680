"""Write an extended model as remote code: its weights under their own names, and one modeling file.

The one rule: the modeling file needs only torch and transformers, never langext.
"""

from pathlib import Path
from typing import Any

from langext.architectures import families, stock
from langext.artifacts import write_json
from langext.exports import modeling_neutral_residue as module
from langext.exports import shards
from langext.methods.residue import stacks


def write(net: Any, out: Path) -> None:
    """Write the weights, the modeling file for the base's family, and a config.json whose `auto_map` names its classes.

    https://huggingface.co/docs/transformers/custom_models
    """
    code = Path(module.__file__)
    family = families.of(net.config)
    (out / code.name).write_text(source(code.read_text(encoding="utf-8"), family), encoding="utf-8")
    weights = ({name: tensor.to(stock.WEIGHTS) for name, tensor in part.items()} for part in stock.of(net).parts())
    shards.write(weights, out)
    extensions = stacks(net)
    blocks = [next(iter(stack.values())) for stack in extensions]  # all blocks of one extension have the same gate and size
    config = net.config.to_dict() | {
        "model_type": f"neutral_residue_{family.module}",
        "architectures": [module.NeutralResidueForCausalLM.__name__],
        "auto_map": {
            "AutoConfig": f"{code.stem}.{module.NeutralResidueConfig.__name__}",
            "AutoModel": f"{code.stem}.{module.NeutralResidueModel.__name__}",
            "AutoModelForCausalLM": f"{code.stem}.{module.NeutralResidueForCausalLM.__name__}",
        },
        "residues": [
            {"gate": block.gate, "size": block.gate_proj.weight.shape[0], "layers": sorted(stack)}
            for block, stack in zip(blocks, extensions, strict=True)
        ],
        "dtype": str(stock.WEIGHTS).removeprefix("torch."),
    }
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(out / "config.json", config)


def source(text: str, family: families.Family) -> str:
    """Rewrite the text of the modeling file, which derives from Llama's classes, to derive from those of `family`."""
    for part, name in family.classes.items():
        text = text.replace(f"Llama{part}", name)
    text = text.replace("llama.modeling_llama", f"{family.module}.modeling_{family.module}")
    text = text.replace("neutral_residue_llama", f"neutral_residue_{family.module}")
    return text.replace("Llama with neutral residues", f"{family.prefix} with neutral residues")

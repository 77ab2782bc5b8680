"""Extended models as remote code: the weights under their own names and one modeling file that needs transformers alone."""

from pathlib import Path
from typing import Any

from langext.architectures import families, stock
from langext.artifacts import write_json
from langext.exports import modeling_neutral_residue as module
from langext.exports import shards
from langext.methods.residue import stacks


def write(net: Any, out: Path) -> None:
    """Save safetensors, config.json with `auto_map`, and the modeling file, made to derive from the base's own classes."""
    code = Path(module.__file__)
    family = families.of(net.config)
    (out / code.name).write_text(source(code.read_text(encoding="utf-8"), family), encoding="utf-8")
    weights = ({name: tensor.to(stock.WEIGHTS) for name, tensor in part.items()} for part in stock.of(net).parts())
    shards.write(weights, out)
    found = stacks(net)
    blocks = [next(iter(stack.values())) for stack in found]
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
            for block, stack in zip(blocks, found, strict=True)
        ],
        "dtype": str(stock.WEIGHTS).removeprefix("torch."),
    }
    config.pop("_name_or_path", None)
    write_json(out / "config.json", config)


def source(text: str, family: families.Family) -> str:
    """The modeling file, which is written for Llama, for another family: the names of the classes it derives from change."""
    for part, name in family.classes.items():
        text = text.replace(f"Llama{part}", name)
    text = text.replace("llama.modeling_llama", f"{family.module}.modeling_{family.module}")
    text = text.replace("neutral_residue_llama", f"neutral_residue_{family.module}")
    return text.replace("Llama with neutral residues", f"{family.prefix} with neutral residues")

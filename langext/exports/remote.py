"""Extended models as remote code: the weights under their own names and one modeling file that needs transformers alone."""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from langext.artifacts import write_json
from langext.exports import modeling_neutral_residue as module
from langext.methods.neutral_residues import NeutralResidues, residues


def write(live: Any, out: Path) -> None:
    """Save safetensors, config.json with `auto_map`, and the modeling file."""
    net = live.net
    assert isinstance(live.method, NeutralResidues), "methods without gates export natively"
    code = Path(module.__file__)
    shutil.copy(code, out / code.name)
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    if net.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = net.config.to_dict() | {
        "model_type": module.NeutralResidueConfig.model_type,
        "architectures": [module.NeutralResidueForCausalLM.__name__],
        "auto_map": {
            "AutoConfig": f"{code.stem}.{module.NeutralResidueConfig.__name__}",
            "AutoModel": f"{code.stem}.{module.NeutralResidueModel.__name__}",
            "AutoModelForCausalLM": f"{code.stem}.{module.NeutralResidueForCausalLM.__name__}",
        },
        "residue_size": residues(net)[0].gate_proj.weight.shape[0],
        "residue_gate": live.method.gate,
        "dtype": str(net.dtype).removeprefix("torch."),
    }
    config.pop("_name_or_path", None)
    write_json(out / "config.json", config)

"""GGUF file -> a folder of safetensors that transformers and vLLM both load.

Run as a child process (`python -m ezxmc.models.gguf SRC DST`): the weights in
memory and what transformers keeps of them go away with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONVERTER = "gguf-1"
"""Version of the conversion. Raise it when its output changes: it is part of a model's identity."""


def convert(source: Path, target: Path) -> None:
    """Dequantise a GGUF file to bfloat16 and save it with config and tokenizer.

    Args:
        source: The `.gguf` file.
        target: An existing folder; gets `model.safetensors`, `config.json`,
            `generation_config.json` and the tokenizer's files with the chat
            template the GGUF holds.

    Raises:
        OSError: The file cannot be read, or the disk is full.
        ValueError: transformers does not know the architecture.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    # Tied weights are one tensor under two names: keep the first (the input
    # embedding), as safetensors holds no aliases and the config says "tied".
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        weights[name] = tensor.contiguous()
    save_file(weights, str(target / "model.safetensors"), metadata={"format": "pt"})

    config = model.config.to_dict()
    # Plain save_pretrained would refuse or write this; the weights are no longer quantised.
    config.pop("quantization_config", None)
    config = {key: value for key, value in config.items() if not key.endswith("name_or_path")}
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "bfloat16"
    config_file = target / "config.json"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # save_file writes for the owner alone; a cache may be shared.
    (target / "model.safetensors").chmod(config_file.stat().st_mode)
    model.generation_config.save_pretrained(str(target))
    AutoTokenizer.from_pretrained(
        str(source.parent), gguf_file=source.name, trust_remote_code=False
    ).save_pretrained(str(target))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

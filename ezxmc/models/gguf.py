"""GGUF file -> a folder of safetensors that transformers and vLLM both load.

Run as a child process (`python -m ezxmc.models.gguf SRC DST FORMAT`): the weights in
memory and what transformers keeps of them go away with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def convert(source: Path, target: Path, *, int8: bool = False) -> None:
    """Dequantise a GGUF file to bfloat16 and save it with config and tokenizer.

    Args:
        source: The `.gguf` file.
        target: An existing folder; gets `model.safetensors`, `config.json`, `generation_config.json` and the
            tokenizer's files with the chat template the GGUF holds.
        int8: Round the matrices of the layers to 8 bits, as `quantised` does.

    Raises:
        OSError: The file cannot be read, or the disk is full.
        ValueError: transformers does not know the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    save_model(model, target, int8=int8)
    AutoTokenizer.from_pretrained(
        str(source.parent), gguf_file=source.name, trust_remote_code=False
    ).save_pretrained(str(target))


def save_model(model: Any, target: Path, *, int8: bool = False) -> None:
    """Save a causal language model of transformers as `convert` does, without a tokenizer.

    Args:
        model: Its weights in bfloat16; with `int8` the matrices of its layers are freed on the way.
        target: An existing folder.
        int8: As in `convert`.
    """
    import torch
    from safetensors.torch import save_file

    rounded: dict[str, torch.Tensor] = {}
    if int8:
        # The output matrix stays: it is used once per answer, and the answers are read off it.
        head = model.get_output_embeddings()
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                rounded[f"{name}.weight"], rounded[f"{name}.weight_scale"] = quantised(layer.weight.detach())
                del layer.weight
    # Tied weights are one tensor under two names: keep the first (the input
    # embedding), as safetensors holds no aliases and the config says "tied".
    weights = rounded
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
    if int8:
        config["quantization_config"] = _W8A8
    config_file = target / "config.json"
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # save_file writes for the owner alone; a cache may be shared.
    (target / "model.safetensors").chmod(config_file.stat().st_mode)
    model.generation_config.save_pretrained(str(target))


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits, each row by a scale of its own: its largest value becomes 127.

    A processor multiplies 8-bit integers about twice as fast as bfloat16. The engine rounds
    what it multiplies them with in the same way, each token by a scale of its own.

    Args:
        weight: (out, in), any float type.

    Returns:
        (out, in) int8 and (out, 1) float32 scales: their product is the matrix, to half a scale.
    """
    import torch

    exact = weight.float()
    # A row of zeros takes any scale but zero.
    scale = exact.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127
    return (exact / scale).round().to(torch.int8), scale


def _eight_bits(strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}


# As the library compressed-tensors writes it, whose format vLLM and transformers read.
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _eight_bits("channel", dynamic=False),
            "input_activations": _eight_bits("token", dynamic=True),
        }
    },
}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int8=sys.argv[3].endswith("-int8"))

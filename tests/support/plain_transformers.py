"""Log-probabilities of next tokens by transformers alone, in float32.

    python plain_transformers.py FOLDER < {"prompts": [[id, ...], ...], "tokens": [id, ...]}

A program, as this wants a process of its own: after other engines have been used in one, transformers
was seen to leave tied weights untied, that is random.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in asked["prompts"]]
    json.dump([row[asked["tokens"]].tolist() for row in rows], sys.stdout)


if __name__ == "__main__":
    main()

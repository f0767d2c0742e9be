"""Loads a model folder in transformers and prints its logits, to compare with what the engine says of it.

    python check_export.py FOLDER 5 17 3 ...        # one line of logits per token id, %.9g

Exits with 1 if transformers finds a tensor missing, unexpected or of another shape; MTP layers, which it
does not load with the main model, are only counted. Made for transformers 5.23; 4.57 works too.
"""

import re
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main():
    folder, *ids = sys.argv[1:]
    config = AutoConfig.from_pretrained(folder)
    config._experts_implementation = "eager"  # takes experts of any width
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, torch_dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True)
    layer = re.compile(r"model\.layers\.(\d+)\.")
    found = {kind: sorted(map(str, info.get(kind) or [])) for kind in
             ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    is_mtp = lambda key: (m := layer.match(key)) and int(m[1]) >= config.num_hidden_layers
    mtp = [key for key in found["unexpected_keys"] if is_mtp(key)]
    found["unexpected_keys"] = [key for key in found["unexpected_keys"] if not is_mtp(key)]
    if mtp:
        print(f"# {len(mtp)} MTP tensors left aside", file=sys.stderr)
    for kind, keys in found.items():
        if keys:
            print(f"# {kind}: {keys[:5]}", file=sys.stderr)
    if any(found.values()):
        sys.exit(1)
    with torch.no_grad():
        logits = model(torch.tensor([[int(i) for i in ids]])).logits[0]
    for row in logits:
        print(" ".join(f"{x:.9g}" for x in row.tolist()))


if __name__ == "__main__":
    main()

"""Holds an adapter's folder that `shoestring` wrote against the real PEFT: the same logits, unmerged and merged.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    shoestring convert BASE --to base-folder                     # where the adapter's base is a GGUF file
    shoestring score ADAPTER --ids 1,2,3,4 --logits-out logits.safetensors
    python tests/golden/check_peft.py base-folder ADAPTER 1,2,3,4 logits.safetensors
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, adapter, ids, logits = sys.argv[1:]
ids = torch.tensor([[int(i) for i in ids.split(",")]])
ours = load_file(logits)["logits"]
plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
with torch.no_grad():
    before = plain(ids).logits[0]
    model = PeftModel.from_pretrained(plain, adapter).eval()
    theirs = model(ids).logits[0]
    merged = model.merge_and_unload()(ids).logits[0]
top = theirs.abs().max()
for name, found in [("PEFT, unmerged", theirs), ("PEFT, merged", merged), ("without the adapter", before)]:
    print(f"{name}: off by {((found - ours).abs().max() / top).item():.2e}, relative to the largest")
if ((theirs - ours).abs().max() / top).item() > 1e-5:
    sys.exit("the logits differ")
if ((before - ours).abs().max() / top).item() < 1e-5:
    sys.exit("the adapter does nothing: this shows nothing")

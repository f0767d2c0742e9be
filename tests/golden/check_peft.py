"""Holds an adapter's folder that `shoestring` wrote against the real PEFT: the same logits, unmerged and merged.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    shoestring convert BASE --to base-folder                     # where the adapter's base is a GGUF file
    shoestring score ADAPTER --ids 1,2,3,4 --logits-out logits.safetensors
    python tests/golden/check_peft.py base-folder ADAPTER 1,2,3,4 logits.safetensors

PEFT computes in f64, where what it merges does not matter; beside it stands how far its own f32 is off.
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base, adapter, ids, logits = sys.argv[1:]
ids = torch.tensor([[int(i) for i in ids.split(",")]])
ours = load_file(logits)["logits"].double()


def theirs(dtype, adapted=True, merged=False):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    if adapted:
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval().to(dtype)
    if merged:
        model = model.merge_and_unload()
    with torch.no_grad():
        return model(ids).logits[0].double()


exact = theirs(torch.float64)


def off(found):
    return ((found - exact).abs().max() / exact.abs().max()).item()


for name, found in [
    ("ours", ours),
    ("PEFT in f32, unmerged", theirs(torch.float32)),
    ("PEFT in f32, merged", theirs(torch.float32, merged=True)),
    ("without the adapter", theirs(torch.float64, adapted=False)),
]:
    print(f"{name}: off by {off(found):.2e}, relative to the largest")
if off(ours) > 1e-5:
    sys.exit("the logits differ")
if off(theirs(torch.float64, adapted=False)) < 1e-5:
    sys.exit("the adapter does nothing: this shows nothing")

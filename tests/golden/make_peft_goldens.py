"""Writes the reference values of adapters: what the real PEFT computes on the golden models, logits and gradients.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_peft_goldens.py

Each case is a folder with adapter/ as PEFT saves it and a golden.safetensors: input_ids [17], logits [17, vocab], and
grad.<name> for each matrix of the adapter, of the mean cross-entropy of token t+1 at position t. Everything is computed in
float64, as in make_goldens.py.
"""

import json
import shutil
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from make_goldens import Float64

HERE = Path(__file__).parent
CASES = {
    "peft_llama": ("llama_tied", dict(
        r=4, lora_alpha=6,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])),
    "peft_qwen2_rslora": ("qwen2", dict(r=5, lora_alpha=3, use_rslora=True, target_modules=["v_proj", "up_proj"])),
}


def make(name, base, settings):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(HERE / base, attn_implementation="sdpa", dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **settings))
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = 0.2 * torch.randn(p.shape)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    model = model.double()
    ids = torch.randint(0, model.config.vocab_size, (1, 17))
    with Float64():
        logits = model(ids, use_cache=False).logits
        F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    golden = {"input_ids": ids[0], "logits": logits[0].detach().float()}
    for key, p in model.named_parameters():
        if "lora_" in key:
            golden["grad." + key.replace(".default", "")] = p.grad.float()
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")


for case, (base, settings) in CASES.items():
    make(case, base, settings)

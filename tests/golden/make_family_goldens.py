"""Writes the reference values of the families beside those of make_goldens.py, in the same form: input_ids, logits, loss and
grad.<name>, from float64, for tiny random models.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_family_goldens.py

Sequences are longer than the windows, so that those hide keys; no choice of an expert is closer than MARGIN.
"""

import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.mistral import modeling_mistral
from transformers.models.olmoe import modeling_olmoe
from transformers.models.qwen3_moe import modeling_qwen3_moe
from transformers.models.smollm3 import modeling_smollm3

from make_goldens import DEEPSEEK, DENSE, HERE, LENGTH, ROWS, build, check_names, cross_entropy, in_float64, on_disk

MARGIN = 1e-3
EXPERTS = DENSE | dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20, hidden_size=24,
                       num_attention_heads=4, head_dim=6)
EVEN = dict(kv_lora_rank=12, qk_nope_head_dim=8, v_head_dim=10)
CASES = {
    "mistral_window": DENSE | dict(model_type="mistral", sliding_window=5),
    "smollm3": DENSE | dict(model_type="smollm3", num_hidden_layers=4, pad_token_id=0, no_rope_layer_interval=2),
    "qwen3_moe": EXPERTS | dict(model_type="qwen3_moe", norm_topk_prob=True, mlp_only_layers=[]),
    "olmoe": EXPERTS | dict(model_type="olmoe", intermediate_size=20, norm_topk_prob=False),
    # transformers views pairs of these rows as complex numbers, which wants even widths.
    "deepseek_v2": {k: v for k, v in DEEPSEEK.items() if k not in ("num_nextn_predict_layers", "n_group", "topk_group")} | EVEN | dict(
        model_type="deepseek_v2", num_hidden_layers=2, topk_method="greedy", routed_scaling_factor=1.5,
        norm_topk_prob=False),
    "deepseek_v2_groups": {k: v for k, v in DEEPSEEK.items() if k != "num_nextn_predict_layers"} | EVEN | dict(
        model_type="deepseek_v2", num_hidden_layers=2, topk_method="group_limited_greedy", n_group=4, topk_group=2,
        q_lora_rank=None, n_shared_experts=2, norm_topk_prob=False),
    "gemma3": DENSE | dict(
        model_type="gemma3_text", num_hidden_layers=7, num_attention_heads=4, head_dim=8, hidden_size=20,
        query_pre_attn_scalar=10, sliding_window=5, pad_token_id=0,
        rope_parameters=dict(full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=2.0),
                             sliding_attention=dict(rope_type="default", rope_theta=100.0))),
}
CLASSES = [
    modeling_deepseek_v2.DeepseekV2RMSNorm, modeling_deepseek_v2.DeepseekV2TopkRouter,
    modeling_mistral.MistralRMSNorm, modeling_olmoe.OlmoeRMSNorm, modeling_olmoe.OlmoeTopKRouter,
    modeling_qwen3_moe.Qwen3MoeRMSNorm, modeling_qwen3_moe.Qwen3MoeTopKRouter, modeling_smollm3.SmolLM3RMSNorm,
]


def gemma_norm(self, x):
    return self._norm(x) * (1.0 + self.weight)


class Watch:
    """How close the choices of the routers are."""

    def __init__(self, model):
        self.closest = float("inf")
        for module in model.modules():
            if type(module).__name__.endswith(("TopkRouter", "TopKRouter")):
                module.register_forward_hook(lambda r, _, out: self.see(r, out[0].softmax(-1).detach()))

    def see(self, router, scores):
        groups = getattr(router, "num_group", None) or 1
        if getattr(router, "topk_method", None) == "group_limited_greedy":
            best = scores.view(len(scores), groups, -1).max(-1).values.sort(descending=True)
            self.gap(best.values, router.topk_group)
            keep = torch.zeros(len(scores), groups).scatter_(1, best.indices[:, :router.topk_group], 1.0)
            scores = scores * keep.repeat_interleave(scores.shape[-1] // groups, -1)
        self.gap(scores.sort(descending=True).values, router.top_k)

    def gap(self, ordered, k):
        self.closest = min(self.closest, (ordered[:, k - 1] - ordered[:, k]).min().item())


def initialise(model, generator, from_one):
    for name, tensor in sorted(model.named_parameters()):
        draw = torch.randn(tensor.shape, generator=generator)
        value = 0.2 * draw
        if "norm" in name:
            value = value + (0 if from_one else 1)
        elif name.endswith("gate.weight"):
            value = 0.4 * draw
        with torch.no_grad():
            tensor.copy_(value)


def attempt(name, settings, seed):
    generator = torch.Generator().manual_seed(seed)
    model = build(settings)
    gemma = settings["model_type"] == "gemma3_text"
    initialise(model, generator, gemma)
    ids = torch.randint(2, settings["vocab_size"], (ROWS, LENGTH), generator=generator)
    with torch.no_grad():
        unmodified = model(ids, use_cache=False).logits
    saved = {n: t.clone() for n, t in model.state_dict().items()}
    model.double()
    if gemma:
        model.model.embed_tokens.embed_scale = torch.tensor(settings["hidden_size"] ** 0.5, dtype=torch.float64)
        model.model.embed_tokens.scalar_embed_scale = settings["hidden_size"] ** 0.5
    watch = Watch(model)
    logits = model(ids, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1], ids[:, 1:])
    loss.backward()
    if watch.closest < MARGIN:
        return False
    worst = (logits - unmodified).abs().max() / logits.abs().max()
    assert worst < 2e-5, f"{name}: the float32 model differs by {worst:.1e}"
    wrapped = type("Wrapped", (), {"model": model})
    gradients = on_disk(wrapped, {f"model.{n}": p.grad for n, p in model.named_parameters()})
    golden = {"input_ids": ids, "logits": logits.detach().float(), "loss": loss.detach().float()[None]}
    golden |= {f"grad.{n}": g for n, g in gradients.items()}
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.load_state_dict(saved)
    model.float()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    check_names(folder, golden)
    save_file(golden, folder / "golden.safetensors")
    print(f"{name}: seed {seed}, loss {loss.item():.4f}, closest {watch.closest:.1e}")
    return True


def main():
    torch.set_num_threads(1)
    undo = [in_float64(cls) for cls in CLASSES if "torch.float32" in __import__("inspect").getsource(cls.forward)]
    modeling_gemma3.Gemma3RMSNorm.forward = gemma_norm
    for name, settings in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        assert any(attempt(name, settings, seed) for seed in range(1, 200)), name
    for restore in undo:
        restore()


if __name__ == "__main__":
    main()

"""Writes the reference values that the model tests compare with: tiny random models, and what PyTorch and
transformers compute for them.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_goldens.py            # rewrites every folder next to this file

Each case is a folder as transformers saves it (config.json, model.safetensors) with a golden.safetensors:

    input_ids                [2, 17] int64; no padding
    logits                   [2, 17, vocab]
    loss                     [1] mean cross-entropy of token t+1 at position t, over 2*16 targets
    grad.<name>              gradient of the loss for each tensor of model.safetensors that has one
    losses                   [11] the loss before AdamW step 0, 1, ... 9 and after the tenth
    inv_freq, attention_scaling, softmax_scale      of the rotary embedding and of the attention
    router.<layer>           [2*17, k] int64, the experts chosen in layer <layer>, ascending

The case deepseek_mtp also has mtp_logits [2, 16, vocab]; its loss is  main + 0.3 * mtp.  Position i of the
MTP layer sees hidden state i after the model's last norm and the embedding of token i+1, and predicts token
i+2 (2*15 targets). The layer is transformers' own MtpLayer.

AdamW: lr 1e-3, betas 0.9 and 0.95, eps 1e-8, weight decay 0.1 decoupled (p *= 1 - lr*wd before the update)
on every tensor of two or more dimensions, embeddings, head and routers included, none on norms and biases;
bias-corrected, no clipping, no schedule; e_score_correction_bias stays as it is.

Precision. Everything is computed in float64 and stored in float32, from weights that float32 holds exactly.
transformers casts to float32 inside RMSNorm and the router: those two forwards are run from their own source
with that cast changed to float64. Attention is torch's scaled_dot_product_attention, which keeps float64 (the
"eager" one has its softmax in float32). What stays in float32, because it defines the model: inv_freq, the
angles position * inv_freq, and their cosines and sines. The loss is cross_entropy on float64 logits
(transformers' own casts them to float32). The unmodified float32 model must agree with all this to 2e-5.

Routing. transformers 4.57 masks the experts of dropped groups with 0.0, the reference implementation and
transformers 5 with -inf; they differ only where s + b < 0. Here every chosen expert has s + b > 0, so all
agree, and no choice of an expert or of a group is closer than MARGIN in any of the eleven forward passes.

rope.json holds inv_freq, attention_scaling and softmax_scale of published models' shapes.
"""

import inspect
import json
import os
import shutil
import textwrap
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

HERE = Path(__file__).parent
MARGIN = 2e-4
STEPS = 10
ROWS, LENGTH = 2, 17
MTP_WEIGHT = 0.3

DEEPSEEK = dict(
    model_type="deepseek_v3", vocab_size=61, hidden_size=36, intermediate_size=50, moe_intermediate_size=10,
    num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=14, kv_lora_rank=11,
    qk_nope_head_dim=7, qk_rope_head_dim=6, v_head_dim=9, n_routed_experts=8, n_shared_experts=1,
    num_experts_per_tok=3, n_group=1, topk_group=1, first_k_dense_replace=1, routed_scaling_factor=2.5,
    num_nextn_predict_layers=0, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)
DENSE = dict(
    vocab_size=61, hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)
CASES = {
    # MLA with a query latent, one group, one dense layer, odd widths throughout.
    "deepseek_q_lora": DEEPSEEK,
    # A plain q_proj, no dense layer, two shared experts, weights of the experts not normalised.
    "deepseek_no_q_lora": DEEPSEEK | dict(
        q_lora_rank=None, num_hidden_layers=2, first_k_dense_replace=0, n_shared_experts=2,
        norm_topk_prob=False, routed_scaling_factor=1.5, rms_norm_eps=1e-5),
    # Two of four groups, three experts in each.
    "deepseek_groups": DEEPSEEK | dict(
        num_hidden_layers=2, n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=4,
        moe_intermediate_size=7),
    # YaRN, as published but short: position 16 is twice the original length. Also a tied head.
    "deepseek_yarn": DEEPSEEK | dict(
        num_hidden_layers=2, qk_rope_head_dim=10, tie_word_embeddings=True, max_position_embeddings=32,
        rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=4.0, beta_slow=1.0,
                             mscale=1.0, mscale_all_dim=0.7, original_max_position_embeddings=8)),
    # One MTP layer.
    "deepseek_mtp": DEEPSEEK | dict(num_hidden_layers=2, num_nextn_predict_layers=1),
    # Grouped queries and a tied head.
    "llama_tied": DENSE | dict(model_type="llama", tie_word_embeddings=True),
    # Llama 3.1's RoPE: with these numbers pairs fall below, between and above the two wavelengths.
    "llama3_rope": DENSE | dict(
        model_type="llama", hidden_size=40, num_attention_heads=4, num_key_value_heads=4, head_dim=10,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32)),
    # Biases on q, k, v.
    "qwen2": DENSE | dict(model_type="qwen2"),
    # Norms on q and k; heads wider than hidden / heads; YaRN on a dense model.
    "qwen3": DENSE | dict(
        model_type="qwen3", hidden_size=26, num_attention_heads=4, head_dim=8, num_hidden_layers=3,
        rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                             original_max_position_embeddings=16)),
}
# Published shapes whose RoPE is compared: DeepSeek-V3, Llama 3.1 8B, R1-Distill-Qwen-1.5B, Qwen3 with YaRN.
ROPE_ONLY = {
    "deepseek_v3": DEEPSEEK | dict(
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, max_position_embeddings=163840,
        rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, beta_fast=32.0, beta_slow=1.0,
                             mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=4096)),
    "llama_3_1": DENSE | dict(
        model_type="llama", hidden_size=256, num_attention_heads=2, head_dim=128, max_position_embeddings=131072,
        rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "qwen2_default": DENSE | dict(
        model_type="qwen2", hidden_size=256, num_attention_heads=2, head_dim=128, max_position_embeddings=131072),
    "qwen3_yarn": DENSE | dict(
        model_type="qwen3", head_dim=128, max_position_embeddings=131072,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0,
                             original_max_position_embeddings=32768)),
    "llama_linear": DENSE | dict(
        model_type="llama", rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
}


def in_float64(cls):
    """Replaces a forward by its own source with the cast to float32 changed to float64."""
    source = textwrap.dedent(inspect.getsource(cls.forward))
    assert "torch.float32" in source, f"{cls.__name__} no longer casts to float32"
    scope = {}
    exec(source.replace("torch.float32", "torch.float64"), vars(inspect.getmodule(cls)), scope)
    original, cls.forward = cls.forward, scope["forward"]
    return lambda: setattr(cls, "forward", original)


class Float64:
    """While entered, RMSNorms and the router compute in float64."""

    def __enter__(self):
        self.undo = [in_float64(cls) for cls in (
            modeling_deepseek_v3.DeepseekV3RMSNorm, modeling_deepseek_v3.DeepseekV3TopkRouter,
            modeling_llama.LlamaRMSNorm, modeling_qwen2.Qwen2RMSNorm, modeling_qwen3.Qwen3RMSNorm)]

    def __exit__(self, *_):
        for undo in self.undo:
            undo()


def build(config_dict):
    config = AutoConfig.for_model(**config_dict)
    config._experts_implementation = "eager"  # the grouped product wants widths that are multiples of 4
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


class WithMtp(torch.nn.Module):
    """A model with its MTP layers, if it has any."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.mtp = torch.nn.ModuleList()
        count = getattr(model.config, "num_nextn_predict_layers", 0)
        if count:
            config = model.config.get_mtp_config()
            config._attn_implementation = "sdpa"
            config._experts_implementation = "eager"
            kinds = modeling_deepseek_v3.DeepseekV3DecoderLayer, modeling_deepseek_v3.DeepseekV3RMSNorm
            self.mtp.extend(MtpLayer(config, *kinds, layer_idx=i) for i in range(count))

    def forward(self, ids):
        out = self.model(ids, output_hidden_states=True, use_cache=False)
        loss = cross_entropy(out.logits[:, :-1], ids[:, 1:])
        if not self.mtp:
            return loss, out.logits, None
        hidden = out.hidden_states[-1][:, :-1]
        positions = torch.arange(1, ids.shape[1])[None]
        rope = self.model.model.rotary_emb(hidden, positions)
        hidden = self.mtp[0](
            self.model.model.embed_tokens(ids[:, 1:]), hidden, position_embeddings=rope, attention_mask=None,
            position_ids=positions, past_key_values=None)
        mtp_logits = self.model.lm_head(hidden)
        return loss + MTP_WEIGHT * cross_entropy(mtp_logits[:, :-1], ids[:, 2:]), out.logits, mtp_logits


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def initialise(module, generator):
    """Weights large enough that logits, routing and attention differ from token to token."""
    for name, tensor in sorted(list(module.named_parameters()) + list(module.named_buffers())):
        if "inv_freq" in name:
            continue
        draw = torch.randn(tensor.shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            value = 0.1 * draw
        elif name.endswith("bias"):
            value = 0.2 * draw
        elif "norm" in name:
            value = 1 + 0.2 * draw
        elif name.endswith("gate.weight"):
            value = 0.4 * draw
        else:
            value = 0.2 * draw
        with torch.no_grad():
            tensor.copy_(value)


def on_disk(module, tensors):
    """Renames and splits in-memory tensors (parameters or their gradients) to those of model.safetensors."""
    layers = module.model.config.num_hidden_layers
    out = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith("mtp."):
            _, number, rest = name.split(".", 2)
            rest = rest.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
            name = f"model.layers.{layers + int(number)}.{rest}"
        if name.endswith(".experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                base = name.removesuffix("gate_up_proj")
                out[f"{base}{e}.gate_proj.weight"], out[f"{base}{e}.up_proj.weight"] = gate, up
        elif name.endswith(".experts.down_proj"):
            for e, down in enumerate(tensor):
                out[f"{name.removesuffix('down_proj')}{e}.down_proj.weight"] = down
        else:
            out[name] = tensor
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in out.items()}


class RouterWatch:
    """Records the experts chosen and how close any choice was."""

    def __init__(self, module):
        self.closest, self.chosen, self.lowest = float("inf"), {}, float("inf")
        # modules() lists a router once under the main model and the MTP layers in order after it.
        routers = [m for m in module.modules() if isinstance(m, modeling_deepseek_v3.DeepseekV3TopkRouter)]
        first = getattr(module.model.config, "first_k_dense_replace", 0)
        for i, router in enumerate(routers):
            router.register_forward_hook(lambda r, _, out, layer=first + i: self.see(r, out, layer))

    def see(self, router, out, layer):
        logits, _, indices = out
        biased = (logits.sigmoid() + router.e_score_correction_bias).detach()
        if router.num_group > 1:
            grouped = biased.view(len(biased), router.num_group, -1)
            groups = grouped.topk(2)[0].sum(-1).sort(descending=True)
            self.gap(groups[0], router.topk_group)
            dropped = groups[1][:, router.topk_group:]
            grouped.scatter_(1, dropped[..., None].expand(-1, -1, grouped.shape[-1]), float("-inf"))
        ordered = biased.sort(descending=True)
        self.gap(ordered[0], router.top_k)
        self.lowest = min(self.lowest, ordered[0][:, router.top_k - 1].min().item())
        expected = ordered[1][:, :router.top_k].sort()[0]
        assert torch.equal(expected, indices.sort()[0])
        self.chosen[layer] = expected

    def gap(self, ordered, k):
        if k < ordered.shape[-1]:
            self.closest = min(self.closest, (ordered[:, k - 1] - ordered[:, k]).min().item())


def attempt(name, config_dict, seed):
    """One case with one seed; None if a routing choice was too close."""
    generator = torch.Generator().manual_seed(seed)
    module = WithMtp(build(config_dict))
    initialise(module, generator)
    model = module.model
    ids = torch.randint(2, config_dict["vocab_size"], (ROWS, LENGTH), generator=generator)
    with torch.no_grad():
        unmodified = module(ids)
    saved = {n: t.clone() for n, t in module.state_dict().items()}

    module.double()
    watch = RouterWatch(module)
    with Float64():
        loss, logits, mtp_logits = module(ids)
        loss.backward()
        for ours, theirs in zip((loss, logits, mtp_logits), unmodified):
            if ours is not None:
                worst = (ours - theirs).abs().max() / ours.abs().max()
                assert worst < 2e-5, f"{name}: the float32 model differs by {worst:.1e}"
        golden = {"input_ids": ids, "logits": logits.detach().float(), "loss": loss.detach().float()[None]}
        if mtp_logits is not None:
            golden["mtp_logits"] = mtp_logits.detach().float()
        gradients = on_disk(module, {n: p.grad for n, p in module.named_parameters()})
        golden |= {f"grad.{n}": g for n, g in gradients.items()}
        golden |= {f"router.{layer}": chosen.clone() for layer, chosen in watch.chosen.items()}

        parameters = list(module.parameters())
        groups = [dict(params=[p for p in parameters if p.ndim >= 2], weight_decay=0.1),
                  dict(params=[p for p in parameters if p.ndim < 2], weight_decay=0.0)]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
        losses = [loss.item()]
        for _ in range(STEPS):
            optimizer.step()
            optimizer.zero_grad()
            loss = module(ids)[0]
            loss.backward()
            losses.append(loss.item())
        golden["losses"] = torch.tensor(losses, dtype=torch.float64).float()
    if watch.closest < MARGIN or watch.lowest <= 0:
        return None

    golden |= {n: torch.as_tensor(v, dtype=torch.float32) for n, v in rope_of(model).items()}
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    module.load_state_dict(saved)
    module.float()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # made up by transformers; states nothing
    if module.mtp:
        weights = load_file(folder / "model.safetensors")
        weights |= on_disk(module, {n: t for n, t in module.state_dict().items() if n.startswith("mtp.")})
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_names(folder, golden)
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}, seed {seed}"
    save_file(golden, folder / "golden.safetensors", metadata={"made_by": made_by})  # one key: no order to vary
    size = sum(f.stat().st_size for f in folder.iterdir())
    routing = "" if watch.closest == float("inf") else f", closest routing choice {watch.closest:.1e}"
    print(f"{name}: seed {seed}, loss {losses[0]:.4f} -> {losses[-1]:.4f}{routing}, {size} bytes")
    return size


def check_names(folder, golden):
    """Every tensor on disk has a gradient, but for the router's bias; every gradient has a tensor."""
    weights = load_file(folder / "model.safetensors")
    trained = {n for n in weights if not n.endswith("e_score_correction_bias")}
    assert trained == {n.removeprefix("grad.") for n in golden if n.startswith("grad.")}
    assert all(weights[n].shape == golden[f"grad.{n}"].shape for n in trained)


def rope_of(model):
    rotary, attention = model.model.rotary_emb, model.model.layers[0].self_attn
    return {
        "inv_freq": rotary.inv_freq.float().tolist(),
        "attention_scaling": [rotary.attention_scaling],
        "softmax_scale": [attention.scaling],
    }


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    total = 0
    for name, config_dict in CASES.items():
        sizes = (attempt(name, config_dict, seed) for seed in range(1, 200))
        total += next(size for size in sizes if size is not None)
    rope = {}
    for name, config_dict in ROPE_ONLY.items():
        model = build(config_dict)
        rope[name] = {"config": json.loads(model.config.to_json_string()), **rope_of(model)}
    (HERE / "rope.json").write_text(json.dumps(rope, indent=1) + "\n")
    total += os.path.getsize(HERE / "rope.json")
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main()

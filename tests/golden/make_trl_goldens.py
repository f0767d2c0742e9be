"""Writes the reference values that the objectives of reinforcement are compared with: what TRL's GRPOTrainer makes of
fixed completions and rewards.

    pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 \
        tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_trl_goldens.py        # rewrites the folder trl next to this file

The folder holds two tiny random models as transformers saves them, trl (the policy) and trl/reference, and
golden.safetensors. Four groups of three completions, padded with 0 to one length:

    prompts                   [4, 5] int64
    completions, lengths      [12, 7] and [12] int64
    rewards                   [12]
    advantages.<scaling>      [12], scaling `group` (TRL's default) or `none` (Dr. GRPO)
    policy.<t>, reference.<t> [12, 7] log-probabilities at temperature t, of the policy and of the reference
    old.<t>.<drift>           [12, 7] log-probabilities when the completions were sampled; `near` and `far` are those of the policy
                              and a little or much noise, so that ratios are clipped or not
    <case>.loss               [1] the loss of one optimizer step
    <case>.terms              [12, 7] what the loss is a weighted sum of, per token
    <case>.slopes             [12, 7] derivative of the loss by each log-probability
    <case>.gradient           derivative of the loss by all parameters, sorted by name and laid end to end

A case is <objective>.kl<0 or 1>.<t>.<drift>. Further cases: <objective>.second.<t> is the second update of a rollout, after
one AdamW step (lr 1e-2, betas 0.9 and 0.95, eps 1e-2, no decay, no clipping) on the first, all twelve completions in each;
<objective>.half.<t> is the update on the first two groups (old: far) of a rollout that is worked off in two.
<objective>.unbiased.<t> has `use_bias_correction_kl` (old: near).

Nothing of the loss is written here again: advantages, log-probabilities and reference come from the trainer's
_generate_and_score_completions, with the sampling replaced by the fixed completions; loss and terms from its
_compute_loss; slopes and gradients from autograd.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

HERE = Path(__file__).parent / "trl"
GROUPS, GROUP, PROMPT, LENGTH = 4, 3, 5, 7
CLIP_LOW, CLIP_HIGH, BETA = 0.2, 0.28, 0.1
TEMPERATURES = (1.0, 0.7)
DRIFT = {"near": 0.02, "far": 0.5}
REWARDS = [1.1, 0.1, 0.0, 0.0, 0.0, 1.0, 0.5, 1.0, 0.25, 0.1, 0.1, 0.1]
LENGTHS = [7, 3, 5, 1, 6, 4, 2, 7, 5, 3, 6, 4]
# TRL's CISPO takes the cap itself, not what it exceeds 1 by.
OBJECTIVES = {
    "grpo": dict(loss_type="grpo"),
    "dr_grpo": dict(loss_type="dr_grpo", scale_rewards="none"),
    "dapo": dict(loss_type="dapo"),
    "bnpo": dict(loss_type="bnpo"),
    "cispo": dict(loss_type="cispo", epsilon_high=1 + CLIP_HIGH),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence"),
}
CONFIG = dict(
    model_type="llama", vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)  # fmt: skip


def model(seed):
    """Large enough weights that predictions differ from token to token; the reference differs a little."""
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), attn_implementation="eager")
    generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(net.named_parameters()):
            draw = torch.randn(tensor.shape, generator=generator) + 0.2 * torch.randn(tensor.shape, generator=other)
            tensor.copy_(1 + 0.2 * draw if "norm" in name else 0.6 * draw)
    return net


def tokenizer():
    words = ["<bos>", "<eos>", "<pad>"] + [f"w{i}" for i in range(3, CONFIG["vocab_size"])]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


GENERATOR = torch.Generator().manual_seed(7)
PROMPTS = torch.randint(3, CONFIG["vocab_size"], (GROUPS, PROMPT), generator=GENERATOR)
COMPLETIONS = [torch.randint(3, CONFIG["vocab_size"], (n,), generator=GENERATOR) for n in LENGTHS]
NOISE = torch.randn(GROUPS * GROUP, LENGTH, generator=GENERATOR)


def trainer(folder, temperature, beta, **settings):
    config = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, temperature=temperature, beta=beta,
        per_device_train_batch_size=GROUPS * GROUP, gradient_accumulation_steps=1, num_generations=GROUP,
        num_iterations=2, max_completion_length=LENGTH, max_steps=1, gradient_checkpointing=False, report_to="none",
        **(dict(epsilon=CLIP_LOW, epsilon_high=CLIP_HIGH) | settings),
    )  # fmt: skip
    texts = [" ".join(f"w{i}" for i in prompt) for prompt in PROMPTS.tolist()]
    made = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(HERE), reward_funcs=lambda completions, **_: REWARDS, args=config, processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": texts}),
    )  # fmt: skip
    if beta:
        made.ref_model.load_state_dict(model(3).state_dict())
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    prompts = [ids for ids in PROMPTS.tolist() for _ in range(GROUP)]
    completions = [ids.tolist() for ids in COMPLETIONS]
    texts = [" ".join(f"w{i}" for i in ids) for ids in completions]
    made._generate = lambda _: (prompts, completions, None, texts, None, {}, None, None)
    inputs = made._generate_and_score_completions([{"prompt": text} for text in texts])
    return made, inputs


def measured(made, inputs, seen):
    """The trainer's loss and its terms, and the gradients of both kinds."""
    made.model.zero_grad()
    original = made._get_per_token_logps_and_entropies

    def watched(*args, **kwargs):
        out = original(*args, **kwargs)
        out[0].retain_grad()
        seen["logps"] = out[0]
        return out

    def terms(frame, event, _):
        if event == "return" and frame.f_code is GRPOTrainer._compute_loss.__code__:
            seen["terms"] = frame.f_locals["per_token_loss"].detach()

    made._get_per_token_logps_and_entropies = watched
    sys.setprofile(terms)
    loss = made._compute_loss(made.model, inputs)
    sys.setprofile(None)
    made._get_per_token_logps_and_entropies = original
    loss.backward()
    mask = inputs["completion_mask"]
    gradient = [p.grad.flatten() for _, p in sorted(made.model.named_parameters())]
    return {
        "loss": loss.detach()[None],
        "terms": (seen["terms"] * mask).contiguous(),
        "slopes": seen["logps"].grad * mask,
        "gradient": torch.cat(gradient).clone(),
    }


def sliced(inputs, rows):
    return {k: v[:rows] if torch.is_tensor(v) and v.dim() else v for k, v in inputs.items()}


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    for place, seed in ((HERE, 2), (HERE / "reference", 3)):
        model(seed).save_pretrained(place)
        (place / "generation_config.json").unlink()
    padded = torch.zeros(GROUPS * GROUP, LENGTH, dtype=torch.long)
    for row, ids in zip(padded, COMPLETIONS):
        row[: len(ids)] = ids
    golden = {
        "prompts": PROMPTS,
        "completions": padded,
        "lengths": torch.tensor(LENGTHS),
        "rewards": torch.tensor(REWARDS),
    }
    clipped = {}
    with tempfile.TemporaryDirectory() as folder:
        for t in TEMPERATURES:
            for name, settings in OBJECTIVES.items():

                def add(case, made, inputs):
                    got = measured(made, inputs, {})
                    golden.update({f"{name}.{case}.{k}": v for k, v in got.items()})
                    return got

                for beta in (0.0, BETA):
                    made, inputs = trainer(folder, t, beta, use_bias_correction_kl=False, **settings)
                    policy, mask = inputs["old_per_token_logps"], inputs["completion_mask"]
                    golden[f"advantages.{settings.get('scale_rewards', 'group')}"] = inputs["advantages"]
                    golden[f"policy.{t}"] = policy * mask
                    for drift, size in DRIFT.items():
                        inputs["old_per_token_logps"] = golden[f"old.{t}.{drift}"] = (policy + size * NOISE) * mask
                        got = add(f"kl{int(beta > 0)}.{t}.{drift}", made, inputs)
                        if beta == 0:
                            idle = (got["slopes"] == 0) & (mask > 0) & (inputs["advantages"][:, None] != 0)
                            clipped[f"{name}.{t}.{drift}"] = idle.sum().item()
                    if beta:
                        golden[f"reference.{t}"] = inputs["ref_per_token_logps"] * mask
                        made, inputs = trainer(folder, t, beta, use_bias_correction_kl=True, **settings)
                        inputs["old_per_token_logps"] = golden[f"old.{t}.near"]
                        add(f"unbiased.{t}", made, inputs)
                made, inputs = trainer(folder, t, 0.0, **settings)
                optimizer = torch.optim.AdamW(
                    made.model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-2, weight_decay=0.0
                )
                measured(made, inputs, {})
                optimizer.step()
                add(f"second.{t}", made, inputs)
                made, inputs = trainer(folder, t, 0.0, **settings)
                made.args.steps_per_generation = 2
                inputs["old_per_token_logps"] = golden[f"old.{t}.far"]
                add(f"half.{t}", made, sliced(inputs, GROUPS * GROUP // 2))
    print("tokens without a slope:", clipped)
    golden = {name: tensor.detach().contiguous().clone() for name, tensor in golden.items()}
    made_by = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    save_file(golden, HERE / "golden.safetensors", metadata={"made_by": made_by})
    print(made_by, sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()

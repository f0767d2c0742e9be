"""Writes what torch.optim.Muon makes of some matrices and of a model: muon.safetensors.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_muon_golden.py

    p.<R>x<C>, g.<R>x<C>, q.<R>x<C>     a matrix, the gradients of three steps [3, R, C], and the matrix after them
    losses                              [11] the loss of llama_tied before step 0, 1, ... 9 and after the tenth

Muon as Moonlight scales it (adjust_lr_fn="match_rms_adamw"), Nesterov, five Newton-Schulz steps. torch rounds the factors of
those to bfloat16; here its own source runs with that cast changed to float64, and everything else is float64 too, stored as
float32. For the model the embedding (which is its head) and the norms have AdamW, as in Muon's own examples.
"""

import inspect

import torch
from make_goldens import HERE, Float64, cross_entropy
from safetensors.torch import load_file, save_file
from torch.optim import _muon
from transformers import AutoModelForCausalLM

MUON = dict(lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
ADAMW = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8)


def in_float64():
    source = inspect.getsource(_muon._zeropower_via_newtonschulz)
    assert "torch.bfloat16" in source
    exec(source.replace("torch.bfloat16", "torch.float64"), vars(_muon))


def matrices(golden):
    generator = torch.Generator().manual_seed(1)
    for rows, columns in [(5, 12), (12, 5), (16, 16), (35, 40), (1, 7)]:
        p = torch.nn.Parameter(torch.randn(rows, columns, generator=generator).double())
        optimizer = torch.optim.Muon([p], **MUON)
        golden[f"p.{rows}x{columns}"] = p.detach().float().clone()
        gradients = torch.randn(3, rows, columns, generator=generator)
        golden[f"g.{rows}x{columns}"] = gradients
        for gradient in gradients:
            p.grad = gradient.double()
            optimizer.step()
        golden[f"q.{rows}x{columns}"] = p.detach().float()


def losses():
    folder = HERE / "llama_tied"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").double()
    ids = load_file(folder / "golden.safetensors")["input_ids"]
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" in n]
    norms = [p for p in model.parameters() if p.ndim < 2]
    muon = torch.optim.Muon(hidden, **MUON)
    groups = [dict(params=others, weight_decay=0.1), dict(params=norms, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, **ADAMW)
    out = []
    with Float64():
        for _ in range(11):
            loss = cross_entropy(model(ids, use_cache=False).logits[:, :-1], ids[:, 1:])
            out.append(loss.item())
            for optimizer in (muon, adamw):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (muon, adamw):
                optimizer.step()
    print(" ".join(f"{loss:.4f}" for loss in out))
    return torch.tensor(out, dtype=torch.float64).float()


def main():
    torch.set_num_threads(1)
    in_float64()
    golden = {}
    matrices(golden)
    golden["losses"] = losses()
    made_by = f"torch {torch.__version__}"
    save_file(golden, HERE / "muon.safetensors", metadata={"made_by": made_by})


if __name__ == "__main__":
    main()

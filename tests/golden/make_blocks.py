"""Writes blocks.bin: random blocks of every ggml format that is read, and the values that ggml's own package gives them.

    pip install gguf==0.19.0 numpy && python make_blocks.py
"""

import pathlib
import struct

import gguf
import numpy as np

KINDS = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]

rng = np.random.default_rng(1)
out = b""
for name in KINDS:
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = 4 if values > 1 else 64
    raw = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    # Scales that are numbers: random bits of an f16 may be none.
    halves = {"F16": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "BF16": []}
    for at in halves.get(name, [0, 2] if name.endswith("_1") else [0]):
        scales = (rng.standard_normal(blocks) * 0.01).astype(np.float16)
        raw[:, at : at + 2] = scales.view(np.uint8).reshape(blocks, 2)
    if name == "BF16":
        raw = (rng.standard_normal(blocks).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    got = gguf.quants.dequantize(raw.reshape(-1), kind).astype(np.float32).reshape(-1)
    out += struct.pack("<II", kind.value, got.size) + raw.tobytes() + got.tobytes()
pathlib.Path(__file__).with_name("blocks.bin").write_bytes(out)

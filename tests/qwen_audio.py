"""Qwen-Audio restated: plain functions over its published names, one clip at a time.

It shares no line with the encoder that it checks: complex numbers turn the queries, keys of padding
are cut off instead of masked, and the sequence is built without padding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

MELS, WINDOW_FRAMES = 80, 3000
AUDIO = {
    "n_mels": MELS, "n_ctx": WINDOW_FRAMES // 2, "n_state": 24, "n_head": 3, "n_layer": 2,
    "output_dim": 32, "avg_pool": True, "add_audio_bos_eos_token": True, "audio_start_id": 60,
}  # fmt: skip
CONFIG = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 32,
    "intermediate_size": 96, "kv_channels": 8, "layer_norm_epsilon": 1e-5, "no_bias": True,
    "num_attention_heads": 4, "num_hidden_layers": 5, "rotary_emb_base": 10000, "rotary_pct": 1.0,
    "seq_length": 2048, "tie_word_embeddings": False, "vocab_size": 70, "use_dynamic_ntk": True,
    "use_logn_attn": True, "audio": AUDIO,
}  # fmt: skip


def random_weights(seed: int = 0, vocab: int = 70) -> dict[str, Tensor]:
    """Tensors under the official names, large enough that a mistake would show."""
    make, h, a = torch.Generator().manual_seed(seed), 32, 24
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, h)}
    for i in range(5):
        block = f"transformer.h.{i}."
        shapes |= {f"{block}ln_1.weight": (h,), f"{block}ln_2.weight": (h,)}
        shapes |= {f"{block}attn.c_attn.weight": (3 * h, h), f"{block}attn.c_attn.bias": (3 * h,)}
        shapes |= {f"{block}attn.c_proj.weight": (h, h), f"{block}mlp.c_proj.weight": (h, 48)}
        shapes |= {f"{block}mlp.w1.weight": (48, h), f"{block}mlp.w2.weight": (48, h)}
    shapes |= {"transformer.ln_f.weight": (h,), "lm_head.weight": (vocab, h)}
    audio = "transformer.audio."
    shapes |= {f"{audio}conv1.weight": (a, MELS, 3), f"{audio}conv1.bias": (a,)}
    shapes |= {f"{audio}conv2.weight": (a, a, 3), f"{audio}conv2.bias": (a,)}
    shapes |= {f"{audio}positional_embedding": (WINDOW_FRAMES // 2, a)}
    for i in range(2):
        block = f"{audio}blocks.{i}."
        for name in ("query", "key", "value", "out"):
            shapes[f"{block}attn.{name}.weight"] = (a, a)
            if name != "key":
                shapes[f"{block}attn.{name}.bias"] = (a,)
        shapes |= {f"{block}mlp.0.weight": (4 * a, a), f"{block}mlp.0.bias": (4 * a,)}
        shapes |= {f"{block}mlp.2.weight": (a, 4 * a), f"{block}mlp.2.bias": (a,)}
        for name in ("attn_ln", "mlp_ln"):
            shapes |= {f"{block}{name}.weight": (a,), f"{block}{name}.bias": (a,)}
    shapes |= {f"{audio}ln_post.weight": (a,), f"{audio}ln_post.bias": (a,)}
    shapes |= {f"{audio}proj.weight": (h, a), f"{audio}proj.bias": (h,)}
    shapes |= {f"{audio}audio_bos_eos_token.weight": (2, h)}
    found = {name: 0.25 * torch.randn(shape, generator=make) for name, shape in shapes.items()}
    return {n: w + 1 if ".ln" in n and n.endswith("weight") else w for n, w in found.items()}


def write_checkpoint(folder: Path, weights: dict[str, Tensor], config: object = CONFIG) -> Path:
    """Two shards with an index beside config.json, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    names, where = sorted(weights), {}
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{part}-of-00002.safetensors"
        save_file({n: weights[n].contiguous() for n in chosen}, folder / file)
        where |= dict.fromkeys(chosen, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}), "utf-8")
    return folder


def hear(w: dict[str, Tensor], mel: Tensor, frames: int) -> Tensor:
    """The audio's embeddings [positions, hidden] with both markers; `frames` of the convolved
    spectrogram [mels, time] hold sound."""
    w = {n.removeprefix("transformer.audio."): v for n, v in w.items() if "audio." in n}
    x = torch.nn.functional.conv1d(mel[None], w["conv1.weight"], w["conv1.bias"], padding=1)
    x = torch.nn.functional.gelu(x)
    x = torch.nn.functional.conv1d(x, w["conv2.weight"], w["conv2.bias"], stride=2, padding=1)
    x = torch.nn.functional.gelu(x)[0].T
    x = (x + w["positional_embedding"][: len(x)])[:frames]
    for i in range(AUDIO["n_layer"]):  # type: ignore[call-overload]
        b = {n.removeprefix(f"blocks.{i}."): v for n, v in w.items()}
        y = norm(x, b["attn_ln.weight"], b["attn_ln.bias"])
        q = y @ b["attn.query.weight"].T + b["attn.query.bias"]
        k, v = y @ b["attn.key.weight"].T, y @ b["attn.value.weight"].T + b["attn.value.bias"]
        mixed = []
        for one, two, three in zip(q.chunk(3, -1), k.chunk(3, -1), v.chunk(3, -1), strict=True):
            mixed.append(torch.softmax(one @ two.T / math.sqrt(one.shape[-1]), -1) @ three)
        x = x + torch.cat(mixed, -1) @ b["attn.out.weight"].T + b["attn.out.bias"]
        y = norm(x, b["mlp_ln.weight"], b["mlp_ln.bias"])
        y = torch.nn.functional.gelu(y @ b["mlp.0.weight"].T + b["mlp.0.bias"])
        x = x + y @ b["mlp.2.weight"].T + b["mlp.2.bias"]
    pairs = len(x) // 2
    x = (x[0 : 2 * pairs : 2] + x[1 : 2 * pairs : 2]) / 2  # averaged before the norm
    x = norm(x, w["ln_post.weight"], w["ln_post.bias"]) @ w["proj.weight"].T + w["proj.bias"]
    begin, end = w["audio_bos_eos_token.weight"]
    return torch.cat((begin[None], x, end[None]))


def think(w: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Each layer's output over embeddings [time, hidden], the last one normed."""
    heads, time = 4, len(x)
    width = x.shape[1] // heads
    angles = torch.outer(
        torch.arange(time).double(), 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    )
    turn = torch.polar(torch.ones_like(angles), angles)
    future = torch.triu(torch.ones(time, time, dtype=torch.bool), 1)

    def turned(part: Tensor) -> Tensor:
        half = width // 2
        done = torch.complex(part[:, :half].double(), part[:, half:].double()) * turn
        return torch.cat((done.real, done.imag), -1).float()

    states = []
    for i in range(5):
        b = {n.removeprefix(f"transformer.h.{i}."): v for n, v in w.items()}
        y = rms(x, b["ln_1.weight"])
        q, k, v = (y @ b["attn.c_attn.weight"].T + b["attn.c_attn.bias"]).split(32, -1)
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = turned(q[:, part]) @ turned(k[:, part]).T / math.sqrt(width)
            mixed.append(torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v[:, part])
        x = x + torch.cat(mixed, -1) @ b["attn.c_proj.weight"].T
        y = rms(x, b["ln_2.weight"])
        gate = y @ b["mlp.w2.weight"].T
        y = (y @ b["mlp.w1.weight"].T) * gate * torch.sigmoid(gate)
        x = x + y @ b["mlp.c_proj.weight"].T
        states.append(x)
    states[-1] = rms(x, w["transformer.ln_f.weight"])
    return states


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def rms(x: Tensor, weight: Tensor) -> Tensor:
    """Root mean square norm."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

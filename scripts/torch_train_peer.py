#!/usr/bin/env python3
"""PyTorch doing what `assay bench` does: GPT-2 or Llama, eager or compiled, trained or scored on random tokens, timed.

    "$(scripts/python-env)" scripts/torch_train_peer.py train|score --layers L --width D --heads H --vocab V --seq T
        --batch B --steps N [--threads N] [--attention sdpa|explicit] [--adamw fused|foreach]
        [--device cpu|cuda] [--dtype f32|bf16]

Prints one JSON object with these keys of `assay bench`: tokens_per_s, step_s (median of the steps after one that warms
up), gflops (6N + 12LdT per trained token, a third of it when scoring) and peak_mib. The model is written as plainly as
nanoGPT's, without dropout; a training step is forward, backward, clipping by global norm, and AdamW. The defaults are
the faster ones on the CPU, so that the comparison is fair. With bf16 the weights stay in float32 and autocast computes in
bfloat16. On a GPU gpu_mib is the most that PyTorch had of its memory in use.
"""

import argparse
import json
import math
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads, attention):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(2, 3) / math.sqrt(c // self.heads)
            future = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class LlamaBlock(nn.Module):
    def __init__(self, width, heads, attention):
        super().__init__()
        self.heads, self.attention = heads, attention
        hidden = -(-width * 8 // 3 // 64) * 64
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        q, k = (y * cos + torch.cat((-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]), -1) * sin for y in (q, k))
        if self.attention == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(2, 3) / math.sqrt(c // self.heads)
            future = torch.ones(t, t, dtype=torch.bool).triu(1)
            y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        z = self.norm2(x)
        return x + self.down(F.silu(self.gate(z)) * self.up(z))


class Decoder(nn.Module):
    """GPT-2, or Llama: rotary positions, RMS norms, gated MLP, a head of its own."""

    def __init__(self, options):
        super().__init__()
        self.is_llama = options.family == "llama"
        self.token = nn.Embedding(options.vocab, options.width)
        block = LlamaBlock if self.is_llama else Block
        self.blocks = nn.ModuleList(block(options.width, options.heads, options.attention) for _ in range(options.layers))
        if self.is_llama:
            self.norm = nn.RMSNorm(options.width, eps=1e-6)
            self.head = nn.Linear(options.width, options.vocab, bias=False)
            size = options.width // options.heads
            frequencies = 10_000.0 ** -(torch.arange(0, size, 2) / size)
            angles = (torch.arange(options.seq)[:, None] * frequencies).repeat(1, 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
        else:
            self.norm = nn.LayerNorm(options.width)
            self.position = nn.Embedding(options.seq, options.width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def loss(self, tokens):
        """Every position but the last predicts the token after it; GPT-2's head is the token embedding."""
        t = tokens.shape[1]
        x = self.token(tokens)
        if self.is_llama:
            for block in self.blocks:
                x = block(x, self.cos[:t], self.sin[:t])
        else:
            x = x + self.position.weight[:t]
            for block in self.blocks:
                x = block(x)
        logits = F.linear(self.norm(x)[:, :-1], self.head.weight if self.is_llama else self.token.weight)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "score"])
    for name in ("layers", "width", "heads", "vocab", "seq", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=["sdpa", "explicit"], default="sdpa")
    parser.add_argument("--family", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss; its first call is not counted")
    parser.add_argument("--adamw", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.manual_seed(1)
    model = Decoder(options)
    autocast = torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.dtype == "bf16")
    loss_of = torch.compile(model.loss) if options.compile else model.loss
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = torch.randint(options.vocab, (options.steps + 1, options.batch, options.seq))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **{options.adamw: True})

    def train(tokens):
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_of(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def score(tokens):
        with autocast:
            return loss_of(tokens).item()

    step = train if options.what == "train" else score
    seconds = []
    for tokens in batches:
        start = time.perf_counter()
        step(tokens)
        seconds.append(time.perf_counter() - start)
    step_s = statistics.median(seconds[1:])
    tokens_per_s = options.batch * options.seq / step_s
    flops_per_token = 6 * num_parameters + 12 * options.layers * options.width * options.seq
    flops_per_token /= 1 if options.what == "train" else 3
    on_gpu = {"gpu_mib": torch.cuda.max_memory_allocated() / 2**20} if options.device == "cuda" else {}
    print(
        json.dumps({
            "tokens_per_s": tokens_per_s,
            "step_s": step_s,
            "gflops": tokens_per_s * flops_per_token / 1e9,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **on_gpu,
        })
    )


if __name__ == "__main__":
    main()

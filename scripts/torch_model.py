"""GPT-2 and Llama as plainly as nanoGPT writes them, without dropout: what scripts/torch_peer.py trains and scores."""

import torch
from torch import nn
from torch.nn import functional as F

PADDED_TO = 64  # rows of the embedding are a multiple of this, as nanoGPT's 50,304 for 50,257


def causal_attention(qkv, heads, rotate=lambda x: x):
    """[b, t, 3 c] to [b, t, c], by the back end that torch.nn.attention.sdpa_kernel leaves."""
    b, t, _ = qkv.shape
    q, k, v = (y.view(b, t, heads, -1).transpose(1, 2) for y in qkv.chunk(3, dim=2))
    y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    return y.transpose(1, 2).reshape(b, t, -1)


class Block(nn.Module):
    def __init__(self, width, heads, mlp_width):
        super().__init__()
        self.heads, mlp_width = heads, mlp_width or 4 * width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x):
        x = x + self.out(causal_attention(self.qkv(self.norm1(x)), self.heads))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class LlamaBlock(nn.Module):
    def __init__(self, width, heads, mlp_width):
        super().__init__()
        self.heads, mlp_width = heads, mlp_width or -(-width * 8 // 3 // 64) * 64
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, mlp_width, bias=False), nn.Linear(width, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x, cos, sin):
        def rotate(y):
            half = y.shape[-1] // 2
            return y * cos + torch.cat((-y[..., half:], y[..., :half]), -1) * sin

        x = x + self.out(causal_attention(self.qkv(self.norm1(x)), self.heads, rotate))
        z = self.norm2(x)
        return x + self.down(F.silu(self.gate(z)) * self.up(z))


class Decoder(nn.Module):
    """GPT-2, or Llama: rotary positions, RMS norms, gated MLP, a head of its own. `vocab` is without the padding."""

    def __init__(self, family, layers, width, heads, mlp_width, vocab, seq):
        super().__init__()
        self.is_llama = family == "llama"
        self.padding, padded = -vocab % PADDED_TO, vocab + -vocab % PADDED_TO
        self.token = nn.Embedding(padded, width)
        block = LlamaBlock if self.is_llama else Block
        self.blocks = nn.ModuleList(block(width, heads, mlp_width) for _ in range(layers))
        if self.is_llama:
            self.norm = nn.RMSNorm(width, eps=1e-6)
            self.head = nn.Linear(width, padded, bias=False)
            size = width // heads
            frequencies = 10_000.0 ** -(torch.arange(0, size, 2) / size)
            angles = (torch.arange(seq)[:, None] * frequencies).repeat(1, 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
        else:
            self.norm = nn.LayerNorm(width)
            self.position = nn.Embedding(seq, width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def num_parameters(self):
        """The padding of the vocabulary not counted."""
        padded = [self.token, self.head] if self.is_llama else [self.token]
        all_of_them = sum(parameter.numel() for parameter in self.parameters())
        return all_of_them - sum(self.padding * matrix.weight.shape[1] for matrix in padded)

    def hidden(self, tokens):
        t = tokens.shape[1]
        x = self.token(tokens)
        if self.is_llama:
            for block in self.blocks:
                x = block(x, self.cos[:t], self.sin[:t])
            return x
        x = x + self.position.weight[:t]
        for block in self.blocks:
            x = block(x)
        return x

    def loss_of_hidden(self, x, targets):
        logits = F.linear(self.norm(x), self.head.weight if self.is_llama else self.token.weight)
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))

    def loss(self, tokens):
        """Rows of [b, t + 1] tokens: each but the last predicts the one after it. GPT-2's head is the embedding."""
        return self.loss_of_hidden(self.hidden(tokens[:, :-1]), tokens[:, 1:])

    def compiled_loss(self, extent):
        """The loss compiled as one graph (`whole`), block by block, which compiles in a fraction of the time
        (`blocks`), or not (`none`); for the very sizes that it is called with."""
        if extent == "whole":
            return torch.compile(self.loss, dynamic=False)
        if extent == "blocks":
            for block in self.blocks:
                block.compile(dynamic=False)
            self.loss_of_hidden = torch.compile(self.loss_of_hidden, dynamic=False)
        return self.loss

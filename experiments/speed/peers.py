"""The peers: the workloads in PyTorch, optimised by hand for CPUs. The only file here that imports torch.

Joint query-key-value projections, `scaled_dot_product_attention`, fused AdamW, logits only at positions with a target, no
dropout.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.speed.workloads import B1, B2, EPS, LEARNING_RATE, VOCAB, WEIGHT_DECAY, WORKLOADS, Workload, batches

BUCKETS, MAX_DISTANCE = 32, 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Attention(nn.Module):
    """Self-attention, or cross-attention to `source`, with one joint projection of each input."""

    def __init__(self, w: Workload, bias: bool, cross: bool = False):
        super().__init__()
        self.heads, self.cross = w.heads, cross
        if cross:
            self.query, self.key_value = nn.Linear(w.width, w.width, bias), nn.Linear(w.width, 2 * w.width, bias)
        else:
            self.query_key_value = nn.Linear(w.width, 3 * w.width, bias)
        self.out = nn.Linear(w.width, w.width, bias)

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor | None, causal: bool) -> Tensor:
        parts = [self.query(x), *self.key_value(source).chunk(2, -1)] if self.cross else self.query_key_value(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        bias = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal and bias is None)
        return self.out(y.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, w: Workload, bias: bool, norm: type[nn.Module], causal: bool, cross: bool):
        super().__init__()
        self.causal = causal
        self.attention_norm, self.attention = norm(w.width), Attention(w, bias)
        self.cross_norm, self.cross = (norm(w.width), Attention(w, bias, cross=True)) if cross else (None, None)
        self.mlp_norm = norm(w.width)
        self.up, self.down = nn.Linear(w.width, w.hidden, bias), nn.Linear(w.hidden, w.width, bias)

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), None, bias, self.causal)
        if self.cross is not None:
            x = x + self.cross(self.cross_norm(x), source, None, False)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


def bucket(distance: Tensor, causal: bool) -> Tensor:
    """T5's buckets (arXiv 1910.10683, section 2.1): one for each short distance, logarithmic ones for long distances."""
    count, side = (BUCKETS, 0) if causal else (BUCKETS // 2, (distance < 0) * (BUCKETS // 2))
    distance = distance.clamp(min=0) if causal else distance.abs()
    exact = count // 2
    far = exact + (torch.log(distance.clamp(min=1) / exact) / torch.tensor(MAX_DISTANCE / exact).log() * (count - exact))
    return side + torch.where(distance < exact, distance, far.long().clamp(max=count - 1))


class Stack(nn.Module):
    """Blocks and a final norm, with learned positions, or if `relative` with biases on the logits of self-attention."""

    def __init__(self, w: Workload, length: int, causal: bool, relative: bool, cross: bool = False):
        super().__init__()
        norm = nn.RMSNorm if relative else nn.LayerNorm
        self.blocks = nn.ModuleList(Block(w, not relative, norm, causal, cross) for _ in range(w.layers))
        self.norm = norm(w.width)
        if relative:
            self.relative = nn.Embedding(BUCKETS, w.heads)
            distance = torch.arange(length)[:, None] - torch.arange(length)
            self.register_buffer("bucket", bucket(distance, causal))
            self.register_buffer("hidden", torch.where((distance < 0) & causal, float("-inf"), 0.0))
        else:
            self.relative, self.learned = None, nn.Embedding(length, w.width)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        bias = None
        if self.relative is None:
            x = x + self.learned.weight[: x.shape[1]]
        else:
            bias = (self.relative(self.bucket).permute(2, 0, 1) + self.hidden)[None]
        for block in self.blocks:
            x = block(x, source, bias)
        return self.norm(x)


class Model(nn.Module):
    def __init__(self, w: Workload):
        super().__init__()
        relative = bool(w.encoder and w.decoder)
        self.embed = nn.Embedding(VOCAB, w.width)
        self.encoder = Stack(w, w.encoder, False, relative) if w.encoder else None
        self.decoder = Stack(w, w.decoder, True, relative, cross=relative) if w.decoder else None
        if w.masked:
            self.transform, self.transform_norm = nn.Linear(w.width, w.width), nn.LayerNorm(w.width)
            self.head_bias = nn.Parameter(torch.zeros(VOCAB))

    def forward(self, encoder: Tensor | None, decoder: Tensor | None, targets: Tensor, where: Tensor | None) -> Tensor:
        y = None if encoder is None else self.encoder(self.embed(encoder))
        y = y if decoder is None else self.decoder(self.embed(decoder), y)
        if where is None:
            logits = F.linear(y, self.embed.weight)
        else:
            y = y.flatten(0, 1)[where.flatten()]
            y = self.transform_norm(F.gelu(self.transform(y), approximate="tanh"))
            logits = F.linear(y, self.embed.weight, self.head_bias)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def tensors(w: Workload) -> list[list[Tensor | None]]:
    """The batches as tensors. Masked positions become indices into the flattened batch, for a single gather."""
    made = []
    for b in batches(w):
        flat = None if b.where is None else b.where + w.encoder * torch.arange(w.batch)[:, None].numpy()
        arrays = (b.encoder, b.decoder, b.targets, flat)
        made.append([None if a is None else torch.from_numpy(a).long().to(DEVICE) for a in arrays])
    return made


class Peer:
    """A model in training; a `Contender` of the worker.

    In bfloat16, the model has bfloat16 weights and AdamW updates float32 originals. Compared with `torch.autocast`, which
    casts every weight and computes the loss in float32, that is 1.20x on W1 eager and a tie on W3.
    """

    def __init__(self, w: Workload, dtype: str, compiled: bool):
        torch.manual_seed(0)
        model, self.batches = Model(w), tensors(w)
        for p in model.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        model = model.to(DEVICE)
        self.originals = list(model.parameters())
        self.model = copy.deepcopy(model).bfloat16() if dtype == "bfloat16" else model
        self.weights = list(self.model.parameters())
        self.parameters = sum(p.numel() for p in self.originals)
        self.versions = {"torch": torch.__version__}
        self.loss = torch.compile(self.model) if compiled else self.model
        matrices, others = ([p for p in self.originals if (p.ndim == 2) == two] for two in (True, False))
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(B1, B2), eps=EPS, fused=True)

    def run(self, steps: int) -> float:
        for step in range(steps):
            loss = self.loss(*self.batches[step % len(self.batches)])
            loss.backward()
            self._update()
        return loss.item()

    def device_mb(self) -> int | None:
        return torch.cuda.max_memory_allocated() // 2**20 if DEVICE == "cuda" else None

    def _update(self) -> None:
        if self.model.embed.weight.dtype == torch.float32:
            self.optimizer.step()
        else:
            for original, weight in zip(self.originals, self.weights, strict=True):
                original.grad = weight.grad.float()
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.originals)
        for weight in self.weights:
            weight.grad = None


def build(workload: str, dtype: str, *, compiled: bool) -> Peer:
    return Peer(WORKLOADS[workload], dtype, compiled)

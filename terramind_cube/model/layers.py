"""The blocks that TerraMind's networks are made of, bottom up.

Tensor names and shapes are those of the released checkpoints. Shapes in comments: B batch, N tokens,
M context tokens, D width, H heads, K head width. Source: arXiv 2504.11171, section 3; the two-stream
decoder block is that of 4M (arXiv 2312.06647).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Attention",
    "CrossAttention",
    "DecoderBlock",
    "EncoderBlock",
    "GatedMlp",
    "KeyValueCache",
    "LayerNorm",
    "Linear",
    "Mlp",
    "attend",
    "cast_linear",
    "exact_float32",
    "interpolate_positions",
    "sincos_positions_1d",
    "sincos_positions_2d",
]

NORM_EPSILON = 1e-6


_exact = threading.Lock()
_exact_users: list[bool] = []
"""What the setting was before, once for every thread that needs it otherwise."""


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Let convolutions in float32 be what they say: on GPUs cuDNN would round inputs to TF32."""
    if device.type == "cpu":
        yield
        return
    backend: Any = torch.backends.cudnn
    with _exact:
        _exact_users.append(backend.allow_tf32)
        backend.allow_tf32 = False
    try:
        yield
    finally:
        with _exact:
            before = _exact_users[0]
            _exact_users.pop()
            if not _exact_users:
                backend.allow_tf32 = before


class Linear(nn.Linear):
    """A linear map that computes in the dtype of its weights, whatever comes in.

    Weights are cast once, when a model is loaded: torch.autocast would cast them at every call.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out], in the dtype of the weights."""
        # Rows of all axes together: without a bias PyTorch would multiply them one by one.
        rows = x.to(self.weight.dtype).reshape(-1, x.shape[-1])
        return F.linear(rows, self.weight, self.bias).view(*x.shape[:-1], self.out_features)


def cast_linear(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of every `Linear` in a network; norms and sums stay in float32."""
    for module in network.modules():
        if isinstance(module, Linear):
            module.to(dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with a learned scale and a bias that is saved but never trained."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; shape is kept."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPSILON)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, bias: bool, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.fc2 = Linear(hidden, dim, bias=bias)
        self.is_tanh = activation == "tanh"

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        hidden = self.fc1(x)
        return self.fc2(hidden.tanh() if self.is_tanh else F.gelu(hidden))  # type: ignore[no-any-return]


class GatedMlp(nn.Module):
    """SwiGLU: the second branch, through SiLU, gates the first (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.fc2 = Linear(hidden, dim, bias=bias)
        self.fc3 = Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))  # type: ignore[no-any-return]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    # (B, N, H*K) -> (B, H, N, K)
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-3, -2)


# Measured on CPUs: batched products beat the fused kernel up to about this many keys (1.6 times in
# bfloat16 at 196), beyond it they do not fit into the cache.
_FEW_KEYS = 512


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (B, H, N, K) to keys and values (B, H, M, K); returns (B, H, N, K)."""
    if q.device.type != "cpu" or k.shape[2] > _FEW_KEYS:
        return F.scaled_dot_product_attention(q, k, v)
    batch, heads, count, width = q.shape
    q, k, v = (part.reshape(batch * heads, -1, width) for part in (q * width**-0.5, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1)
    return torch.bmm(weights, v).view(batch, heads, count, width)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)  # (B, H, N, K) -> (B, N, H*K)


class KeyValueCache:
    """Keys and values that a decoder block has seen, for decoding one token after another."""

    def __init__(self) -> None:
        self.own: tuple[Tensor, Tensor] | None = None  # (B, H, n, K) of the tokens so far
        self.context: tuple[Tensor, Tensor] | None = None  # (B, H, M, K) of the encoder's context

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the newest token's keys and values; return those of all tokens."""
        if self.own is not None:
            keys = torch.cat([self.own[0], keys], dim=2)
            values = torch.cat([self.own[1], values], dim=2)
        self.own = keys, values
        return keys, values

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch, for several continuations of each next to one another.

        The context is not repeated: the continuations of a row share it.
        """
        if self.own is not None:
            keys, values = self.own
            self.own = keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)


class Attention(nn.Module):
    """Multi-head self-attention; rows of `qkv` are queries, keys, values, each head-major."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Attend within x, (B, N, D) to (B, N, D); with a cache also to the tokens before x."""
        q, k, v = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.proj(_merge_heads(attend(q, k, v)))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context; rows of `kv` are keys, values."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim, bias=bias)
        self.kv = Linear(dim, 2 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, M, K) of a context (B, M, D)."""
        k, v = (_split_heads(part, self.heads) for part in self.kv(context).chunk(2, dim=-1))
        return k, v

    def forward(self, x: Tensor, projected: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from x (B, N, D) to a projected context; returns (B, N, D)."""
        k, v = projected
        if k.shape[2] == 0:  # unconditional: there is nothing to attend to
            return self.proj(torch.zeros_like(x))  # type: ignore[no-any-return]
        attended = attend(_split_heads(self.q(x), self.heads), k, v)
        return self.proj(_merge_heads(attended))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """Pre-norm transformer block. `norm` is the class of its two normalisations."""

    def __init__(
        self, dim: int, heads: int, bias: bool, mlp: nn.Module, norm: type[nn.Module] = LayerNorm
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = Attention(dim, heads, bias)
        self.norm2 = norm(dim)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Pre-norm block of self-attention, attention to the encoder's context, and MLP."""

    def __init__(self, dim: int, heads: int, bias: bool, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.self_attn = Attention(dim, heads, bias)
        self.cross_attn = CrossAttention(dim, heads, bias)
        self.query_norm = LayerNorm(dim)
        self.context_norm = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.mlp = mlp

    def forward(self, x: Tensor, context: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Map x (B, N, D), given the context (B, M, D), to (B, N, D).

        With a cache, x is the newest token of a sequence (N = 1), and the context is projected
        once for all of them.
        """
        projected = cache.context if cache else None
        if projected is None:
            projected = self.cross_attn.project(self.context_norm(context))
            if cache:
                cache.context = projected
        x = x + self.self_attn(self.norm1(x), cache)
        # Continuations of one sequence are queries to one context.
        queries = self.query_norm(x).reshape(len(projected[0]), -1, x.shape[-1])
        x = x + self.cross_attn(queries, projected).reshape(x.shape)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def _sincos(positions: Tensor, dim: int) -> Tensor:
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = positions[:, None].double() * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)  # (N, dim)


def sincos_positions_1d(length: int, dim: int) -> Tensor:
    """Sine-cosine position table of a sequence, (1, length, dim) float32."""
    return _sincos(torch.arange(length), dim).float()[None]


def sincos_positions_2d(rows: int, cols: int, dim: int) -> Tensor:
    """Sine-cosine position table of a grid, (1, rows * cols, dim) float32, row-major.

    The first half of a vector encodes the row, the second the column.
    """
    row = torch.arange(rows).repeat_interleave(cols)
    col = torch.arange(cols).repeat(rows)
    return torch.cat([_sincos(row, dim // 2), _sincos(col, dim // 2)], dim=1).float()[None]


def interpolate_positions(table: Tensor, rows: int, cols: int) -> Tensor:
    """Resize a position table (1, D, h, w) to (1, rows * cols, D), bicubic as in training."""
    if table.shape[-2:] != (rows, cols):
        table = F.interpolate(table, (rows, cols), mode="bicubic", align_corners=False)
    return table.flatten(2).transpose(1, 2)

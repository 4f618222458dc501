"""The trunk: blocks in stacks, one or two stacks in a transformer. Everything a family is stands in `lm.config.Model`.

    hidden = model.apply({"params": p}, example, method="hidden")       # [B, P, D], at the places that are predicted
    logits = model.apply({"params": p}, hidden, method="logits")        # [B, P, V]
    logits = model.apply({"params": p}, example)                        # both

Two methods, because a loss need not hold all logits at once. Give `rngs={"dropout": key}` to train with dropout. Decoding
is `decode` with `mutable=["cache"]`: see `lm.generation`.
"""

import dataclasses
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core.scope import LazyRng

from lm import config
from lm.models.attention import Attention
from lm.models.heads import Head
from lm.models.layers import Dropout, Mlp, Norm, Projection, Table
from lm.models.mask import Mask
from lm.models.moe import Moe
from lm.models.positions import Bias, sinusoidal
from lm.types import Example, TokenStream

# A new kind of feed-forward is registered here. Each is called with x [B, T, D] and bool [B, T]: which tokens are text.
FFN: dict[type, Any] = {config.Mlp: Mlp, config.Moe: Moe}


@struct.dataclass
class Context:
    """What every layer of a stack shares."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: jax.Array | None = None  # [N, T, S]
    encoded: jax.Array | None = None  # [B, S', D]
    cross_mask: Any = None  # a Mask of T queries over S' keys


class Block(nn.Module):
    """Attention, cross-attention if asked, feed-forward; each as `y = out(x + res(f(in(x))))`."""

    config: config.Block
    stack: config.Stack
    model: config.Model

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c, m = self.config, self.model
        kinds: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        rope = self.stack.position if isinstance(self.stack.position, config.Rope) else None
        how: dict[str, Any] = kinds | dict(kernel=m.kernel)
        attention = Attention(c.attention, rope, m.init_std, self.out_std(c.attention), name="attention", **how)
        ffn = FFN[type(c.ffn)](c.ffn, m.init_std, self.out_std(c.ffn), name="ffn", **kinds)
        feed = partial(ffn, real=context.mask.q_segments > 0)

        def norm(at: str, name: str, y: jax.Array) -> jax.Array:
            bare = name in c.bare or at not in c.norm_at
            return y if bare else Norm(c.norm, name=f"{name}_{at}_norm", **kinds)(y)

        def look(y: jax.Array) -> jax.Array:
            return attention(y, mask=context.mask, positions=context.positions, bias=context.bias)

        def add(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            x = norm("out", name, x + Dropout(c.dropout)(norm("res", name, y)))
            return nn.with_logical_constraint(x, ("batch", "length", "embed_act"))

        def residual(name: str, f, x: jax.Array) -> jax.Array:
            return add(name, x, f(norm("in", name, x)))

        if c.parallel == "shared":
            return residual("block", lambda y: look(y) + feed(y), x)
        if c.parallel == "separate":
            return add("block", x, look(norm("in", "attention", x)) + feed(norm("in", "ffn", x)))
        x = residual("attention", look, x)
        if c.cross and context.cross_mask is not None:  # shared layers are an encoder's too, which has nothing to look at
            cross = Attention(c.attention, None, m.init_std, self.out_std(c.attention), name="cross", **how)
            x = residual("cross", lambda y: cross(y, mask=context.cross_mask, source=context.encoded, cross=True), x)
        return residual("ffn", feed, x)

    def out_std(self, child: config.Attention | config.Ffn) -> float | None:
        """Of what writes to the residual stream: smaller with depth where nothing normalises the sum (GPT-2, section 2.3)."""
        if "in" not in self.config.norm_at:
            return self.model.init_std
        child = child.expert if isinstance(child, config.Moe) else child
        fan_in = child.hidden if isinstance(child, config.Mlp) else child.num_heads * child.size(self.model.width)
        std = self.model.init_std if self.model.init_std is not None else fan_in**-0.5
        return std * (2 * self.stack.num_layers) ** -0.5


class LayerGroup(nn.Module):
    """x [B, T, D] through the layers of one repetition of the stack's pattern: the unit that `nn.scan` repeats.

    Flax derives a module's random keys from the names on its path. A group draws under the name that it had in the first
    layout of parameters (`turns`, `turn_0`), so that a seed still gives the same parameters and the same dropout.
    """

    stack: config.Stack
    model: config.Model
    letters: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.parent, nn.Module) and self.scope is not None:  # its scope was made just now, under its name
            drawn_as = str(self.name).replace("group", "turn")
            rngs: dict[str, Any] = dict(self.scope.rngs)  # each a LazyRng: a key, and the names to fold into it
            self.scope.rngs = {kind: LazyRng(rng.rng, (*rng.suffix[:-1], drawn_as)) for kind, rng in rngs.items()}

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, None]:
        for i, letter in enumerate(self.letters):
            x = Block(self.stack.blocks[letter], self.stack, self.model, name=f"block_{i}")(x, context)
        return x, None


REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Stack(nn.Module):
    """x [B, T, D] through all layers, scanned (parameters stacked under `groups`) or unrolled (`group_0`, `group_1`, ...)."""

    config: config.Stack
    model: config.Model
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c, m = self.config, self.model
        num_heads = next(iter(c.blocks.values())).attention.num_heads
        bias = Bias(c.position, num_heads, self.causal, m.param_dtype, name="position_bias")(context.mask.distance())
        context = dataclasses.replace(context, bias=bias)
        group = LayerGroup
        if c.remat != "none":
            group = nn.remat(LayerGroup, prevent_cse=not c.scan, policy=REMAT[c.remat])
        if c.scan:
            group = nn.scan(
                group,
                variable_axes={"params": 0, "cache": 0, "losses": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=num_groups(c),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = group(c, m, c.pattern, name="groups")(x, context)
        else:
            letters, size = c.letters(), len(c.pattern)
            for i in range(0, c.num_layers, size):
                x, _ = group(c, m, letters[i : i + size], name=f"group_{i // size}")(x, context)
        if c.final_norm:
            norm = c.blocks[c.letters()[-1]].norm
            x = Norm(norm, name="final_norm", dtype=m.dtype, param_dtype=m.param_dtype)(x)
        return Dropout(c.dropout)(x)


class Embed(nn.Module):
    """Tokens and, where the stack adds them, positions -> [B, T, D]. The token table is one for both stacks and a tied head."""

    config: config.Model

    def setup(self) -> None:
        m = self.config
        kinds: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        width, axis = (m.width, "embed") if m.embed.width is None else (m.embed.width, "embed_in")
        self.tokens = Table(m.vocab_size, width, ("vocab", axis), m.embed_init_std, **kinds)
        if m.embed.width is not None:
            self.project = Projection((m.width,), ("embed_in", "embed"), True, m.init_std, name="project", **kinds)
        if m.embed.types:
            self.types = Table(m.embed.types, width, ("types", axis), m.embed_init_std, **kinds)
        for name in ("encoder", "decoder"):
            stack = getattr(m, name)
            if stack and isinstance(stack.position, config.Learned):
                size = stack.position.max_length + stack.position.offset
                table = Table(size, width, ("position", axis), m.embed_init_std, **kinds, name=f"{name}_positions")
                setattr(self, f"{name}_positions", table)
            if stack and m.embed.norm:
                setattr(self, f"{name}_norm", Norm(m.embed.norm, axis, **kinds, name=f"{name}_norm"))
        self.dropout = Dropout(m.embed.dropout)

    def __call__(self, stream: TokenStream, name: str) -> jax.Array:
        m = self.config
        x = self.tokens(stream.tokens)
        if m.embed.scale is not None:
            x = x * jnp.asarray(m.embed.scale, x.dtype)
        match getattr(m, name).position:
            case config.Learned(offset=offset):
                x = x + getattr(self, f"{name}_positions")(stream.positions + offset)
            case config.Sinusoidal():
                x = x + sinusoidal(stream.positions, m.width).astype(x.dtype)
        if m.embed.types:
            x = x + self.types(jnp.zeros_like(stream.tokens) if stream.types is None else stream.types)
        if m.embed.norm:
            x = getattr(self, f"{name}_norm")(x)
        x = self.dropout(x)
        if m.embed.width is not None:
            x = self.project(x)
        return nn.with_logical_constraint(x, ("batch", "length", "embed_act"))


class Transformer(nn.Module):
    """Encoder-only, decoder-only or encoder-decoder, as `config` has stacks."""

    config: config.Model

    def setup(self) -> None:
        m = self.config
        kinds: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        self.embed = Embed(m)
        if m.encoder and not m.shared:
            self.encoder = Stack(m.encoder, m, causal=False)
        if m.decoder:
            self.decoder = Stack(m.decoder, m, causal=True)
        if m.pooler:
            self.pooler = Projection((m.width,), ("embed", "embed_out"), True, m.init_std, **kinds)
        if m.head:
            self.head = Head(m.head, m.vocab_size, m.embed.width or m.width, m.init_std, **kinds)

    def __call__(self, example: Example) -> jax.Array:
        """Logits [B, P, V] at the predicted places; hidden vectors [B, P, D] of a model without a head."""
        hidden = self.hidden(example)
        if self.config.pooler and self.is_initializing():
            self.pooled(hidden)
        return self.logits(hidden) if self.config.head else hidden

    def hidden(self, example: Example) -> jax.Array:
        """Hidden vectors [B, P, D] at the predicted places: all T of them if `example.where` is None."""
        encoder, decoder = example.encoder, example.decoder
        x: Any = self.encode(encoder) if encoder is not None else None
        if decoder is not None:
            x = self.decode(decoder, x, encoder.segments if encoder is not None else None)
        if example.where is not None:
            x = jnp.take_along_axis(x, example.where[..., None], axis=1)
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V]."""
        return self.head(hidden, self.embed.tokens)

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, D]: what BERT's classifiers read (arXiv 1810.04805, section 4.1)."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def encode(self, stream: TokenStream) -> jax.Array:
        """[B, S] tokens -> [B, S, D]."""
        mask = Mask(stream.segments, stream.segments)
        stack = self.decoder if self.config.shared else self.encoder
        return stack(self.embed(stream, "encoder"), Context(mask, stream.positions))

    def decode(
        self,
        stream: TokenStream,
        encoded: jax.Array | None = None,
        encoded_segments: jax.Array | None = None,
        *,
        cache_length: int = 0,
    ) -> jax.Array:
        """[B, T] tokens (and what they attend to across) -> [B, T, D].

        With `mutable=["cache"]` the T tokens follow those of earlier calls: the first call makes room for
        `cache_length` tokens and takes `encoded`; later ones find both in the cache.
        """
        segments, prefix, start = stream.segments, stream.prefix, 0
        if self.is_mutable_collection("cache") and not self.is_initializing():
            segments, prefix, start = self._remember(stream, cache_length)
            if encoded_segments is not None:
                self.put_variable("cache", "encoded_segments", encoded_segments)
            encoded_segments = self.get_variable("cache", "encoded_segments")
        mask = Mask(stream.segments, segments, prefix, start, causal=True)
        cross = Mask(stream.segments, encoded_segments) if encoded_segments is not None else None
        context = Context(mask, stream.positions, None, encoded, cross)
        return self.decoder(self.embed(stream, "decoder"), context)

    def _remember(self, stream: TokenStream, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Writes segments and prefix of the new tokens behind those of the cache: both [B, S], and where the new start."""
        start = self.get_variable("cache", "length", jnp.zeros((), jnp.int32))
        room = (stream.tokens.shape[0], length)
        prefix = stream.prefix if stream.prefix is not None else jnp.zeros(stream.tokens.shape, bool)
        kept = []
        for name, new in (("segments", stream.segments), ("prefix", prefix)):
            old = self.get_variable("cache", name, jnp.zeros(room, new.dtype))
            kept.append(jax.lax.dynamic_update_slice_in_dim(old, new, start, 1))
            self.put_variable("cache", name, kept[-1])
        self.put_variable("cache", "length", start + stream.tokens.shape[1])
        return kept[0], kept[1], start


def abstract_params(model: config.Model, device: jax.Device | None = None) -> dict[str, Any]:
    """The parameters' shapes and dtypes, nested as `Transformer.init` makes them, at no cost; on `device` if one is given.

    What `lm.checkpoint.load_params` takes: with a device come arrays there, without one NumPy arrays.
    """
    one = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    stream = TokenStream(one, one, one)
    example = Example(stream if model.encoder else None, stream if model.decoder else None, None, None)
    module = Transformer(model)
    tree = jax.eval_shape(lambda key, e: nn.unbox(module.init(key, e)["params"]), jax.random.key(0), example)
    place = None if device is None else jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def num_groups(stack: config.Stack) -> int:
    """Repetitions of the pattern over the layers. ValueError where they do not divide: a scanned stack needs them to."""
    groups, rest = divmod(stack.num_layers, len(stack.pattern))
    if rest:
        raise ValueError(f"{stack.num_layers} layers are no multiple of the pattern '{stack.pattern}': scan=False takes it")
    return groups


def head_params(params: dict[str, Any]) -> dict[str, Any]:
    """The part of the parameters that `Transformer.logits` reads: of a tied head the table of tokens, and what is its own."""
    head = {"head": params["head"]} if "head" in params else {}
    return head if "out" in head.get("head", {}) else head | {"embed": {"tokens": params["embed"]["tokens"]}}


def _tables(params: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in params.get("embed", {}).items() if "embedding" in part}


def own_tables(params: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the tables, of tokens, positions or types, that `other` has in the same shape."""
    shapes = lambda part: [x.shape for x in jax.tree.leaves(part)]
    theirs = _tables(other)
    shared = [name for name, part in _tables(params).items() if name in theirs and shapes(part) == shapes(theirs[name])]
    embed = {name: part for name, part in params["embed"].items() if name not in shared}
    return {name: part for name, part in (params | {"embed": embed}).items() if part}


def with_tables(params: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `own_tables`: whole parameters, in which the missing tables are those of `other`."""
    return params | {"embed": _tables(other) | params.get("embed", {})}


def stack_groups(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled model -> those of the scanned one: `group_0`, `group_1`, ... become a leading axis."""

    def convert(tree: dict[str, Any]) -> dict[str, Any]:
        names = sorted((n for n in tree if re.fullmatch(r"group_\d+", n)), key=lambda n: int(n.removeprefix("group_")))
        rest = {n: t for n, t in tree.items() if n not in names}
        return rest | {"groups": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[n] for n in names))}

    return {name: convert(tree) if name in ("encoder", "decoder") else tree for name, tree in params.items()}

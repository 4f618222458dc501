"""The trunk: blocks in stacks, one or two stacks in a transformer. `lm.config.Model` describes every family.

    hidden = model.apply({"params": p}, example, method="hidden")       # [B, P, D] at the predicted positions
    logits = model.apply({"params": p}, hidden, method="logits")        # [B, P, V]
    logits = model.apply({"params": p}, example)                        # both

They are two methods so that a loss need not hold all logits at once. To train with dropout pass `rngs={"dropout": key}`. To
decode call `decode` with `mutable=["cache"]`, as `lm.generation.programs` does.

Axes: B batch, T query length, S key length, P predicted positions, D width, N heads, V vocabulary.
"""

import dataclasses
import re
from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.errors import UserError
from lm.models.block import Block
from lm.models.bottleneck import Bottleneck
from lm.models.context import Context
from lm.models.embedding import Embed
from lm.models.heads import Head
from lm.models.joined import joined
from lm.models.layers import Dropout, Norm, Projection
from lm.models.mask import Mask, written
from lm.models.positions import PositionBias
from lm.models.stem import abstract_stream
from lm.types import Example, TokenStream


class LayerGroup(nn.Module):
    """Applies the layers of one repetition of the stack's pattern to x [B, T, D]: the unit that `nn.scan` repeats.

    Flax derives a module's random keys from the names on its path. A group draws under the name that it had in the first
    layout of parameters (`turns`, `turn_0`), so that a seed still gives the same parameters and the same dropout.
    """

    stack: config.Stack
    model: config.Model
    letters: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.parent, nn.Module) and self.scope is not None:  # the scope was just made under its name
            rng_name = str(self.name).replace("group", "turn")
            rngs: dict[str, Any] = dict(self.scope.rngs)  # each a LazyRng: a key, and the names to fold into it
            self.scope.rngs = {kind: LazyRng(rng.rng, (*rng.suffix[:-1], rng_name)) for kind, rng in rngs.items()}

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, None]:
        if "input" in self.stack.offload:
            x = checkpoint_name(x, "input")
        for i, letter in enumerate(self.letters):
            x = Block(self.stack.blocks[letter], self.stack, self.model, name=f"block_{i}")(x, context)
        return x, None


# jax's primitive of cuDNN's attention. Its second output, the softmax's log-sums, cannot be kept by a name, as the first can.
CUDNN = "dot_product_attention_fwd_wrapper"


def remat_policy(c: config.Stack) -> Any:
    """What the backward pass finds kept, on the device or in the host's memory, as `jax.checkpoint` takes it."""
    policies = jax.checkpoint_policies
    kept = [policies.save_only_these_names(*c.keep)]
    if "attention" in c.keep:
        kept.append(lambda primitive, *_, **__: primitive.name == CUDNN)
    if c.remat == "dots":
        kept.append(policies.dots_with_no_batch_dims_saveable)
    on_device = reduce(policies.save_from_both_policies, kept)
    if not c.offload:
        return on_device
    on_host = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=(), names_which_can_be_offloaded=c.offload, offload_src="device", offload_dst="pinned_host"
    )

    def policy(primitive: Any, *args: Any, **params: Any) -> Any:
        named = primitive.name == "name" and params["name"] in c.offload
        return (on_host if named else on_device)(primitive, *args, **params)

    return policy


class Stack(nn.Module):
    """Applies all layers to x [B, T, D], scanned (parameters are stacked under `groups`) or unrolled (`group_0`, ...)."""

    config: config.Stack
    model: config.Model
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        c, m = self.config, self.model
        heads = [attention.num_heads for attention in c.self_attentions()] or [1]
        bias = PositionBias(c.position, heads[0], self.causal, m.param_dtype, name="position_bias")(context.mask.distance())
        context = dataclasses.replace(context, bias=bias)
        group = LayerGroup
        if c.remat != "none":
            group = nn.remat(LayerGroup, prevent_cse=not c.scan, policy=remat_policy(c))
        if c.scan:
            group = nn.scan(
                group,
                variable_axes={"params": 0, "cache": 0, "losses": 0, "intermediates": 0},
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


class Transformer(nn.Module):
    """Encoder-only, decoder-only or encoder-decoder: `config` has one of the stacks or both."""

    config: config.Model

    def setup(self) -> None:
        m = self.config
        dtypes: dict[str, Any] = dict(dtype=m.dtype, param_dtype=m.param_dtype)
        self.embed = Embed(m)
        if m.encoder and not m.shared:
            self.encoder = Stack(m.encoder, m, causal=False)
        if m.decoder:
            self.decoder = Stack(m.decoder, m, causal=True)
        if m.bottleneck:
            self.bottleneck = Bottleneck(m)
        if m.join == "prefix":
            self.join = Projection((m.width,), ("embed", "embed_out"), True, m.init_std, **dtypes)
        if m.pooler:
            self.pooler = Projection((m.width,), ("embed", "embed_out"), True, m.init_std, **dtypes)
        if m.head:
            self.head = Head(m.head, m.vocab_size, m.embed.width or m.width, m.init_std, **dtypes)

    def __call__(self, example: Example) -> jax.Array:
        """Returns logits [B, P, V] at the predicted positions; of a model without a head, hidden vectors [B, P, D]."""
        hidden = self.hidden(example)
        if self.config.pooler and self.is_initializing():
            self.pooled(hidden)
        return self.logits(hidden) if self.config.head else hidden

    def hidden(self, example: Example) -> jax.Array:
        """Returns hidden vectors [B, P, D] at the predicted positions: all T positions if `example.where` is None."""
        encoder, decoder = example.encoder, example.decoder
        if decoder is None:
            assert encoder is not None
            x = self.encode(encoder)
        else:
            x = self.decode(decoder, *(() if encoder is None else self.encoded(encoder)))
        if example.where is not None:
            x = jnp.take_along_axis(x, example.where[..., None], axis=1)
        return x

    def embedded(self, stream: TokenStream, name: str) -> jax.Array:
        """Returns what the stack `name`, "encoder" or "decoder", reads: [B, T, D]."""
        return self.embed(stream, name)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden vectors [..., D] -> logits [..., V]."""
        return self.head(hidden, self.embed.tokens)

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """BERT's pooler: [B, T, D] -> tanh of a projection of the first vector, [B, D] (arXiv 1810.04805, section 4.1)."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def encode(self, stream: TokenStream) -> jax.Array:
        """Tokens [B, S] -> the encoder's hidden vectors [B, S, D]."""
        mask = Mask(stream.segments, stream.segments)
        stack = self.decoder if self.config.shared else self.encoder
        return stack(self.embed(stream, "encoder"), Context(mask, stream.positions, tree=stream.tree))

    def encoded(self, source: TokenStream | jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the decoder reads of the encoder: vectors [B, S, D] and their segments [B, S].

        source: what the encoder reads; or latents [B, k, Z] of a model with a bottleneck, instead of those of a text.
        """
        if not isinstance(source, TokenStream):
            return self.bottleneck.expanded(source[:, None]), jnp.ones(source.shape[:2], jnp.int32)
        x = self.encode(source)
        return (x, source.segments) if self.config.bottleneck is None else self.bottleneck(x, source.segments)

    def latents(self, stream: TokenStream) -> jax.Array:
        """Tokens [B, S] -> the vectors of the bottleneck, float32 [B, M, k, Z] for M documents in a row."""
        return self.bottleneck.latents(self.encode(stream), stream.segments)

    def decode(
        self,
        stream: TokenStream,
        encoded: jax.Array | None = None,
        encoded_segments: jax.Array | None = None,
        *,
        cache_length: int = 0,
    ) -> jax.Array:
        """Tokens [B, T] -> the decoder's hidden vectors [B, T, D].

        encoded, encoded_segments: [B, S, D] and [B, S], what `encoded` returns: read by cross-attention, or put before the
        tokens.

        With `mutable=["cache"]` the tokens follow those of earlier calls, in rows of one document each. The first call
        allocates `cache_length` slots and stores `encoded`; later calls omit it.
        """
        m, segments, prefix, blocks, start = self.config, stream.segments, stream.prefix, stream.blocks, 0
        cached = self.is_mutable_collection("cache") and not self.is_initializing()
        if cached:
            segments, prefix, blocks, start = self._append_to_cache(stream, cache_length)
            if encoded is not None and encoded_segments is not None:
                if m.bottleneck is not None:
                    encoded, encoded_segments = (x[:, : m.bottleneck.vectors] for x in (encoded, encoded_segments))
                self.put_variable("cache", "encoded_segments", encoded_segments)
            encoded_segments = self.get_variable("cache", "encoded_segments")
        x = self.embed(stream, "decoder")
        if m.join == "prefix" and encoded_segments is not None:
            return self._decode_behind(encoded, encoded_segments, x, stream, segments, prefix, start, cached)
        if stream.blocks is None:
            mask = Mask(stream.segments, segments, prefix, start, causal=True)
        else:
            mask = Mask(stream.segments, segments, q_start=start, q_blocks=stream.blocks, k_blocks=blocks)
        cross = Mask(stream.segments, encoded_segments) if encoded_segments is not None else None
        return self.decoder(x, Context(mask, stream.positions, None, encoded, cross))

    def _decode_behind(
        self,
        encoded: jax.Array | None,
        encoded_segments: jax.Array,
        x: jax.Array,
        stream: TokenStream,
        segments: jax.Array,
        prefix: jax.Array | None,
        start: jax.Array | int,
        cached: bool,
    ) -> jax.Array:
        """`decode` with the encoder's vectors put before the tokens x [B, T, D]. Keys have `segments` and `prefix`, [B, L]; a
        cache holds the vectors in front of them, and `encoded` is None once it does."""
        K = encoded_segments.shape[1]
        if cached:
            segments = jnp.concatenate([encoded_segments, segments], axis=1)
            if prefix is not None:
                prefix = jnp.concatenate([jnp.zeros_like(encoded_segments, bool), prefix], axis=1)
        if encoded is None:
            mask = Mask(stream.segments, segments, prefix, start + K, causal=True)
            return self.decoder(x, Context(mask, stream.positions))
        row = joined(self.join(encoded), encoded_segments, x, stream, sort=not cached)
        keys = (segments, prefix) if cached else (row.segments, row.prefix)
        y = self.decoder(row.x, Context(Mask(row.segments, *keys, start, causal=True), row.positions))
        return jnp.take_along_axis(y, row.tokens[..., None], axis=1)

    def _append_to_cache(
        self, stream: TokenStream, length: int
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | int]:
        """Appends segments, prefix and blocks of the new tokens; returns them, [B, S], and the index of the first new token.

        That is one for all rows, or int32 [B] if the "length" in the cache is (`lm.generation.engine`).
        """
        start = self.get_variable("cache", "length", 0)  # 0 itself, with which a prompt's attention is cut into blocks
        shape = (stream.tokens.shape[0], length)
        prefix = stream.prefix
        if prefix is None and self.has_variable("cache", "prefix"):
            prefix = jnp.zeros(stream.tokens.shape, bool)
        merged: list[Any] = []
        for name, new in (("segments", stream.segments), ("prefix", prefix), ("blocks", stream.blocks)):
            if new is None:
                merged.append(None)
                continue
            old = self.get_variable("cache", name, jnp.zeros(shape, new.dtype))
            merged.append(written(old, new, start))
            self.put_variable("cache", name, merged[-1])
        self.put_variable("cache", "length", jnp.asarray(start + stream.tokens.shape[1], jnp.int32))
        return merged[0], merged[1], merged[2], start


def boxed_params(module: Transformer) -> dict[str, Any]:
    """Returns the shapes and dtypes of a model's parameters, nested as `init` nests them, in Flax's boxes with the names of
    their axes."""
    model = module.config
    streams = [None if stack is None else abstract_stream(stack) for stack in (model.encoder, model.decoder)]
    example = Example(*streams, targets=None, weights=None)
    return jax.eval_shape(module.init, jax.random.key(0), example)["params"]


def abstract_params(model: config.Model, device: jax.Device | None = None) -> dict[str, Any]:
    """Returns the parameters' shapes and dtypes, nested as `Transformer.init` nests them, without allocating any.

    `lm.saved.Saved.params` takes the result: with `device` it loads arrays there, without one NumPy arrays.
    """
    return unboxed_shapes(boxed_params(Transformer(model)), device)


def unboxed_shapes(boxed: Any, device: jax.Device | None = None) -> Any:
    """The shapes and dtypes of parameters that have the names of their axes with them, placed on `device` if one is given."""
    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)
    make = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(make, jax.eval_shape(nn.unbox, boxed))


def independent_of_padding(model: config.Model) -> config.Model:
    """The same model for rows of any length: the splash kernel takes only multiples of 128 tokens, and the capacity of experts
    is a share of the row, so that padding would decide which tokens they drop: here they drop none."""

    def dropless(stack: config.Stack | None) -> config.Stack | None:
        if stack is None:
            return None
        changed = {
            letter: dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, capacity=None))
            if isinstance(block.ffn, config.Moe)
            else block
            for letter, block in stack.blocks.items()
        }
        return dataclasses.replace(stack, blocks=changed)

    return dataclasses.replace(model, encoder=dropless(model.encoder), decoder=dropless(model.decoder), kernel="plain")


def with_kernel(model: config.Model, kernel: str) -> config.Model:
    """The model with this kernel of attention, or with the plain one if that is not for its positions, dropout or dtype."""
    try:
        return dataclasses.replace(model, kernel=kernel)
    except UserError:
        return dataclasses.replace(model, kernel="plain")


def num_groups(stack: config.Stack) -> int:
    """Returns how often the pattern repeats; ValueError if the layers are no multiple of it, as a scanned stack needs."""
    groups, rest = divmod(stack.num_layers, len(stack.pattern))
    if rest:
        raise ValueError(f"{stack.num_layers} layers are no multiple of the pattern '{stack.pattern}': scan=False takes it")
    return groups


def head_params(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that `Transformer.logits` reads, as arrays: the head's own, and the token table if the head is
    tied."""
    head = {"head": params["head"]} if "head" in params else {}
    return nn.unbox(head if "out" in head.get("head", {}) else head | {"embed": {"tokens": params["embed"]["tokens"]}})


def stack_groups(params: dict[str, Any]) -> dict[str, Any]:
    """Converts parameters of an unrolled model to those of the scanned one: `group_0`, `group_1`, ... become a leading axis."""

    def convert(tree: dict[str, Any]) -> dict[str, Any]:
        names = sorted((n for n in tree if re.fullmatch(r"group_\d+", n)), key=lambda n: int(n.removeprefix("group_")))
        rest = {n: t for n, t in tree.items() if n not in names}
        return rest | {"groups": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[n] for n in names))}

    return {name: convert(tree) if name in ("encoder", "decoder") else tree for name, tree in params.items()}

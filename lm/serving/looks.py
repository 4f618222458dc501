"""A look into a model: what each layer attends to, and which tokens its hidden vectors would predict (logit lens).

The lens is that of nostalgebraist, "interpreting GPT: the logit lens" (2020): after each layer the final norm and the head are
applied to the hidden vectors. The model is the one that is served: its modules are intercepted while one program of its own is
traced, and neither its code nor its other programs change.

Axes: T length, N heads, L layers, D width, V vocabulary, K likeliest tokens.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.generation.vectors import stack_of
from lm.models.attention import Attention, attend
from lm.models.block import Block
from lm.models.layers import Norm, Projection
from lm.models.positions import rotate
from lm.models.transformer import Transformer, num_groups
from lm.types import TokenStream


class Look(NamedTuple):
    attention: Any  # float32 [L, N, T, T], the weights of each query over the keys
    tokens: Any  # int32 [L, T, K], the likeliest after each layer
    log_probs: Any  # float32 [L, T, K], nats


@partial(jax.jit, static_argnames=("model", "top"))
def look(model: Transformer, params: Any, stream: TokenStream, *, top: int) -> Look:
    """Of one text, a stream [1, T]."""
    name = stack_of(model.config)
    stack: Any = getattr(model.config, name)
    if any(b.mixer is not None or b.attention is None or b.attention.score != "dot" for b in stack.blocks.values()):
        raise UserError("a look shows what each layer attends to, and this model has layers of another kind")
    unrolled, params = _unrolled(model, params, name)
    weights, hidden = [], []
    found: dict[tuple[str, ...], jax.Array] = {}  # by the module's path: queries and keys, normalised where they are

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return out
        path = module.path
        if isinstance(module, Projection | Norm) and path[-1] in ("query", "key", "query_norm", "key_norm"):
            found[(*path[:-1], path[-1].removesuffix("_norm"))] = out
        elif isinstance(module, Attention) and not kwargs.get("cross"):
            q, k = found[(*path, "query")], found[(*path, "key")]
            weights.append(_weights(module, q, k, args[0].shape[-1], **kwargs))
        elif isinstance(module, Block):
            hidden.append(out)
        return out

    with nn.intercept_methods(intercept):
        unrolled.apply({"params": params}, stream, method="encode" if name == "encoder" else "decode")
    m, norm = model.config, stack.blocks[stack.letters()[-1]].norm
    own = params["decoder" if m.shared else name]

    def lens(x: Any) -> tuple[jax.Array, jax.Array]:
        if stack.final_norm:
            x = Norm(norm, dtype=m.dtype, param_dtype=m.param_dtype).apply({"params": own["final_norm"]}, x)
        logits: Any = model.apply({"params": params}, x, method="logits")
        return jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32)), top)

    log_probs, tokens = jax.lax.map(lens, jnp.concatenate(hidden))
    return Look(jnp.concatenate(weights), tokens, log_probs)


def _weights(
    module: Attention, q: jax.Array, k: jax.Array, width: int, *, mask: Any, positions: Any = None, bias: Any = None, **_: Any
) -> jax.Array:
    """float32 [1, N, T, T]: what `Attention` weighs the values with. They are what it returns for the identity as values, in
    parts as wide as a head."""
    c, length = module.config, k.shape[1]
    size = c.size(width)
    q, k = (x.reshape(*x.shape[:2], -1, size) for x in (q, k))
    if (rope := c.rope or module.rope) and positions is not None:
        q, k = rotate(q, positions, rope), rotate(k, positions, rope)
    parts = -(-length // size)
    eye = jnp.eye(length, parts * size, dtype=jnp.float32).reshape(1, length, parts, 1, size)
    eye = jnp.broadcast_to(eye, (1, length, parts, c.kv_heads, size))
    options: dict[str, Any] = dict(scale=c.scale if c.scale is not None else size**-0.5, softcap=c.softcap, window=c.window)
    of = lambda i: attend(q, k, eye[:, :, i], mask=mask, bias_NTS=bias, **options)
    return jnp.swapaxes(jnp.concatenate([of(i) for i in range(parts)], axis=-1)[..., :length], 1, 2)


def _unrolled(model: Transformer, params: Any, name: str) -> tuple[Transformer, Any]:
    """The same model with the layers of its stack one by one, which each can be intercepted, and its parameters."""
    m, key = model.config, "decoder" if model.config.shared else name
    stack: Any = getattr(m, key)
    changed = replace(m, kernel="plain", **{key: replace(stack, scan=False, remat="none", keep=())})
    if stack.scan:
        own = dict(params[key])
        groups = own.pop("groups")
        each = {f"group_{i}": jax.tree.map(lambda x, i=i: x[i], groups) for i in range(num_groups(stack))}
        params = {**params, key: own | each}
    return Transformer(changed), params

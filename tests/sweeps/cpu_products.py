"""Compiles what a CPU runs, over model kinds, dtypes, batches and lengths, and tells what the compiler does not take.

    python -m tests.sweeps.cpu_products [--kinds='mha;mqa' --programs=generate,rank --dtypes=bfloat16 --batches=1,33 ...]

For Python 3.12 and later, whose jaxlib gets the flags of `lm.startup`. Nothing is run and no parameters are made, so sizes
may be real ones: XLA's choice of a library for a product depends on its size. Each kind has a process of its own, since a
compiler may also crash. Exit code 1 if anything fails. The default, some 1,500 programs, takes an hour on two cores; it is
not in CI, where `tests/unit/models/test_matmul.py` runs the cases that once failed.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from lm import startup
from lm.config import Alibi, Attention, Block, Buckets, Head, Learned, Mlp, Model, Moe, Norm, Position, Rope, Stack

V, D, HIDDEN = 8192, 256, 1024
NEW, ANSWERS = 128, 5  # tokens that a slot has room for beside its prompt; answers ranked
PLAIN = Mlp(HIDDEN, bias=True)
BIASED, ROPE, TIED = Attention(4, bias=True, out_bias=True), Rope(), Head()


def stack(attention: Attention = BIASED, ffn: Any = PLAIN, position: Position = ROPE, **more: Any) -> Stack:
    block = Block(attention, ffn, Norm("rms"), cross=more.pop("cross", False))
    return Stack(more.pop("layers", 1), {"L": block}, position=position, **more)


def decoder(*args: Any, head: Head = TIED, **more: Any) -> Model:
    return Model(V, D, decoder=stack(*args, **more), head=head)


EXPERT = Mlp(HIDDEN, "silu", gated=True)
KINDS: dict[str, Model] = {
    "mha": decoder(position=Learned(4096)),
    "scanned": decoder(layers=2, scan=True, remat="full"),
    "gqa": decoder(Attention(8, num_kv_heads=2, window=32)),
    "mqa": decoder(Attention(4, num_kv_heads=1, softcap=30.0), position=Alibi()),
    "one head": decoder(Attention(1), head=Head(tied=False, bias=True)),
    "deep heads": decoder(Attention(16, head_dim=128, qk_norm=Norm("rms"))),
    "dropless": decoder(ffn=Moe(8, 2, EXPERT)),
    "one of eight": decoder(ffn=Moe(8, 1, EXPERT, renormalize=False)),
    "limited": decoder(ffn=Moe(8, 2, EXPERT, capacity=1.0)),
    "encoder": Model(V, D, encoder=stack(position=Learned(4096)), head=Head(transform="gelu", bias=True), pooler=True),
    "both": Model(V, D, encoder=stack(position=Buckets()), decoder=stack(position=Buckets(), cross=True)),
    "both, limited": Model(V, D, encoder=stack(ffn=Moe(8, 2, EXPERT, capacity=1.0)), decoder=stack(cross=True)),
}


def shapes(model: Model, batch: int, length: int) -> tuple[Any, Any, Any]:
    """Parameters, an Example and a prompt, of shapes and dtypes alone."""
    import jax
    import jax.numpy as jnp

    from lm.models.transformer import abstract_params
    from lm.types import Example, TokenStream

    def stream(length: int) -> TokenStream:
        ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        return TokenStream(ids, ids, ids)

    weights = jax.ShapeDtypeStruct((batch, length), jnp.float32)
    encoder, decoder = (stream(length) if s else None for s in (model.encoder, model.decoder))
    example = Example(encoder, decoder, jax.ShapeDtypeStruct((batch, length), jnp.int32), weights)
    return abstract_params(model), example, stream(1 if model.encoder else length)


def _generate(model: Model, params: Any, example: Any, prompt: Any) -> None:
    """What the engine does: one prompt is read, and a slot for each row writes."""
    import jax
    import jax.numpy as jnp

    from lm.generation import programs
    from lm.models.transformer import Transformer, independent_of_padding
    from lm.types import TokenStream

    batch, length = prompt.tokens.shape[0], example.decoder.tokens.shape[1]
    source = length if model.encoder else 0
    one, text = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (1, length)))
    setup = programs.Setup(Transformer(independent_of_padding(model)))
    encoder = TokenStream(text, text, text) if source else None
    programs.jitted().prefill.lower(setup.model, params, text, one, encoder, prefix=False).compile()
    empty = partial(programs.empty, setup, slots=batch, length=length + NEW, source=source)
    given = params, None, jax.eval_shape(empty, params, None), jax.ShapeDtypeStruct((1,), jnp.int32), one
    programs.jitted().decode.lower(setup, *given, most=8, way="greedy").compile()


def _rank(model: Model, params: Any, example: Any, prompt: Any, *, size: int = 3) -> None:
    import jax
    import jax.numpy as jnp

    from lm.generation.rank import rank
    from lm.models.transformer import Transformer

    answers, weights = (jax.ShapeDtypeStruct((ANSWERS, size), dtype) for dtype in (jnp.int32, jnp.float32))
    rank.lower(Transformer(model), params, prompt, answers, weights, encoder=example.encoder).compile()


def _fill(model: Model, params: Any, example: Any, prompt: Any) -> None:
    from lm.generation.samples import predict_tokens
    from lm.models.transformer import Transformer

    predict_tokens.lower(Transformer(model), params, example.encoder, V).compile()


def _score(model: Model, params: Any, example: Any, prompt: Any) -> None:
    """Held-out evaluation, and what `lm.evaluate` asks: logits at all places."""
    import jax

    from lm.losses.cross_entropy import scores
    from lm.models.transformer import Transformer, head_params

    apply = Transformer(model).apply
    score = lambda p, e: scores(p, apply, e, head_params=head_params, vocab_size=V)
    jax.jit(score).lower(params, example).compile()
    jax.jit(lambda p, e: apply({"params": p}, e)).lower(params, example).compile()


def _train(model: Model, params: Any, example: Any, prompt: Any) -> None:
    """Loss and gradients, also where a single place of a row is asked for."""
    import jax

    from lm.losses.cross_entropy import cross_entropy
    from lm.models.transformer import Transformer, head_params

    apply = Transformer(model).apply
    loss = lambda p, e: cross_entropy(p, apply, e, head_params=head_params, vocab_size=V).total
    first = lambda x: jax.ShapeDtypeStruct((x.shape[0], 1), x.dtype)
    single = replace(example, targets=first(example.targets), weights=first(example.weights), where=first(example.targets))
    for e in (example, single):
        jax.jit(jax.grad(loss)).lower(params, e).compile()


PROGRAMS: dict[str, Callable[..., None]] = {
    "generate": _generate,
    "rank": _rank,
    "rank letters": partial(_rank, size=2),  # after the prompt, one token at a time
    "fill": _fill,
    "score": _score,
    "train": _train,
}


def cases(flags: argparse.Namespace, kind: str) -> Iterator[tuple[str, str, int, int]]:
    """(program, dtype, batch, length), those that a model of this kind can do."""
    model = KINDS[kind]
    for case in itertools.product(flags.programs, flags.dtypes, flags.batches, flags.lengths):
        decodes = case[0] in ("generate", "rank", "rank letters")
        if (model.decoder is not None or not decodes) and (model.architecture == "encoder" or case[0] != "fill"):
            yield case


def sweep_one(flags: argparse.Namespace, kind: str) -> int:
    """How many cases of a kind failed, each with a line."""
    failed = 0
    for program, dtype, batch, length in cases(flags, kind):
        case = f"{kind}: {program} {dtype} batch {batch} length {length}"
        print(case, end=" ", flush=True)
        model = replace(KINDS[kind], dtype=dtype, param_dtype=dtype)
        try:
            PROGRAMS[program](model, *shapes(model, batch, length))
        except Exception as error:  # whatever it is, it is a finding
            failed += 1
            print("FAILS", str(error).partition("\n")[0][:120], flush=True)
        else:
            print("ok", flush=True)
    return failed


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    startup.before_jax()
    if flags.together or len(flags.kinds) == 1:
        return int(sum(sweep_one(flags, kind) for kind in flags.kinds) > 0)
    given, bad = sys.argv[1:] if argv is None else argv, []
    for kind in flags.kinds:
        words = [sys.executable, "-m", "tests.sweeps.cpu_products", *given, f"--kinds={kind}"]
        if code := subprocess.run(words, stderr=subprocess.DEVNULL).returncode:
            bad.append(f"{kind} (exit code {code})")
    print("failed: " + ", ".join(bad) if bad else "all compile")
    return int(bool(bad))


def parser() -> argparse.ArgumentParser:
    words = lambda text: text.split(",")
    numbers = lambda text: [int(n) for n in text.split(",")]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument(
        "--kinds", type=lambda text: [k.strip() for k in text.split(";")], default=list(KINDS), help="with ; between"
    )
    p.add_argument("--programs", type=words, default=list(PROGRAMS))
    p.add_argument("--dtypes", type=words, default=["float32", "bfloat16"])
    p.add_argument("--batches", type=numbers, default=[1, 2, 3, 4, 7, 8, 16, 17, 32, 33])
    p.add_argument("--lengths", type=numbers, default=[1, 33, 512])
    p.add_argument("--together", action="store_true", help="all kinds in this process")
    return p


if __name__ == "__main__":
    sys.exit(main())

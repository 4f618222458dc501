"""A run of seconds, for tests: `--config=tests/e2e/tiny.py:decoder.causal`, or any architecture and objective that suit."""

from ml_collections import config_dict

LENGTHS = {
    "decoder": dict(decoder_length=32),
    "encoder": dict(encoder_length=32),
    "encoder_decoder": dict(encoder_length=32, decoder_length=32),
}
# A mixture has no defaults: one for each architecture, its first part without a mode.
MIXTURES = {
    "decoder": ("causal", "fill_in_middle", "span_corruption"),
    "encoder": ("masked", "next_sentence"),
    "encoder_decoder": ("denoise", "span_corruption"),
}


def objective_of(kind, architecture):
    if kind != "mixture":
        return dict(kind=kind)
    parts = enumerate(MIXTURES[architecture])
    return dict(kind=kind, parts={f"p{i}": dict(objective=dict(kind=k), mode=f"m{i}" if i else None) for i, k in parts})


def get_config(what="decoder.causal"):
    architecture, objective = what.split(".")
    block = dict(attention=dict(num_heads=2), ffn=dict(hidden=64), dropout=0.1)
    stack = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="learned", max_length=64))
    cross = stack | dict(blocks=dict(L=block | dict(cross=architecture == "encoder_decoder")), position=dict(stack["position"]))
    c = config_dict.ConfigDict()
    c.model = dict(
        vocab_size=512,
        width=32,
        encoder=stack if "encoder" in architecture else None,
        decoder=cross if "decoder" in architecture else None,
        embed=dict(
            types=2 if architecture == "encoder" and objective in ("next_sentence", "mixture") else 0,
            ahead=33 if objective == "any_order" else 0,
        ),
    )
    if objective == "variational":
        c.model.bottleneck = dict(width=8, latent="gaussian", documents=31)
    c.data = dict(
        sources=dict(tiny=dict(kind="jsonl", path="unset")),
        tokenizer=dict(vocab_size=400),
        dedup=dict(near=None),
        holdout=0.2,
        **LENGTHS[architecture],
    )
    c.objective = objective_of(objective, architecture)
    if objective == "replaced_tokens":
        c.objective.generator = dict(
            vocab_size=512, width=16, encoder=stack | dict(num_layers=1), embed=dict(width=32), head=dict(transform="gelu")
        )
        c.model.head = dict(outputs=1, tied=False)
    c.optimizer = dict(learning_rate=0.01, schedule=dict(warmup=5))
    c.train = dict(steps=12, batch_size=4)
    c.checkpoint = dict(every=4)
    c.evaluate = dict(every=6, rows=4)
    samples = () if objective == "contrastive" else ("The ", "a [MASK] b")  # it writes no text
    c.log = dict(every=2, samples=samples, sample_tokens=4, tensorboard=False)
    return c

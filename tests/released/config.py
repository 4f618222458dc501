"""The run that tests.released.make keeps of a release: a decoder of two layers, 16 wide, with averages and dropout."""


def get_config():
    block = dict(attention=dict(num_heads=2, num_kv_heads=1), ffn=dict(hidden=32), dropout=0.1)
    stack = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"), scan=True)
    words = dict(kind="word", vocab_size=64)  # of sentencepiece a later version may make other pieces of the same text
    return dict(
        model=dict(vocab_size=64, width=16, decoder=stack),
        data=dict(
            sources=dict(tiny=dict(kind="jsonl", path="unset")),
            tokenizer=words,
            dedup=dict(near=None),
            holdout=0.3,
            decoder_length=16,
        ),
        objective=dict(kind="causal"),
        optimizer=dict(learning_rate=0.01, schedule=dict(kind="constant", warmup=1), ema=0.9),
        train=dict(batch_size=2),
        checkpoint=dict(every=None),
        evaluate=dict(every=None, rows=4),
        log=dict(every=1, samples=(), tensorboard=False),
    )

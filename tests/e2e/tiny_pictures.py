"""A run of seconds on pictures, for tests: `--config=tests/e2e/tiny_pictures.py:codes`, or draws, cross, prefix."""

from ml_collections import config_dict

IMAGE, SIZE, CODE, CODES, VOCAB, TEXT = 16, 8, 4, 16, 400, 32
SIDE = IMAGE // SIZE
BLOCK = dict(attention=dict(num_heads=2), ffn=dict(hidden=64), dropout=0.0)


def reader(stem, outputs):
    position = dict(kind="learned", max_length=SIDE**2)
    encoder = dict(num_layers=1, blocks=dict(L=BLOCK), position=position, stem=dict(class_token=False, **stem))
    return dict(vocab_size=VOCAB, width=32, encoder=encoder, head=dict(tied=False, bias=True, outputs=outputs))


def writer(cross=False):
    return dict(num_layers=1, blocks=dict(L=dict(cross=cross, **BLOCK)), position=dict(kind="rope"))


def get_config(what="codes"):
    c = config_dict.ConfigDict()
    pixels = dict(size=SIZE, image=IMAGE)
    if what == "codes":
        c.model = reader(pixels, CODE)
        decoder = reader(dict(size=1, image=SIDE, channels=CODE), 3 * SIZE**2)
        c.recipe = dict(kind="image_codes", decoder=decoder, codebook=dict(codes=CODES, size=CODE), shift=1)
    elif what == "draws":
        c.model = dict(vocab_size=VOCAB + CODES, width=32, decoder=writer(), head=dict(tied=False))
        c.recipe = dict(kind="drawing", codes="unset", text=TEXT)
    else:
        model = reader(pixels, None)
        c.model = model | dict(decoder=writer(what == "cross"), join=what, head=dict(tied=False))
        c.recipe = dict(kind="image_text", writes=("caption", "colour", "is_colour"), text=TEXT)
    c.data = dict(
        sources=dict(pictures=dict(kind="jsonl", path="unset", format="captioned")),
        tokenizer=dict(kind="bpe", vocab_size=VOCAB),
        holdout=0.25,
    )
    c.optimizer = dict(learning_rate=0.01, schedule=dict(kind="constant", warmup=0))
    c.train = dict(steps=8, batch_size=8)
    c.checkpoint = dict(every=4)
    c.evaluate = dict(every=8)
    c.log = dict(every=4, tensorboard=False)
    return c

"""Pictures and their names in one space (CLIP, arXiv 2103.00020): OpenMoji's 1,372 pictures, a fifth of them held out.

    python -m lm.train --config=configs/clip_openmoji.py --workdir=runs/clip_openmoji

Your own pictures: a folder with records.jsonl, a line for each, `{"image": "a.png", "text": "a red apple"}`, and
`--config.data.sources.openmoji.kind=jsonl --config.data.sources.openmoji.path=FOLDER/records.jsonl`.

Needs Pillow: pip install 'lm[images]'. Cost: about a minute on two CPU cores. Reached: of 268 pictures that it has not seen 6.3
percent have their name among the 5 nearest (4.0 to 9.9), and 3.7 of the names their picture; chance is 1.9. The training
pictures are soon learned by heart, so that more steps raise the held-out loss.
"""

from ml_collections import config_dict

SIZE = 64  # numbers of the common space


def block(heads, width):
    return dict(attention=dict(num_heads=heads), ffn=dict(hidden=4 * width), dropout=0.1)


def get_config():
    c = config_dict.ConfigDict()
    vocab, width, length = 512, 96, 24
    head = dict(tied=False, outputs=SIZE)
    stem = dict(size=8, image=64)
    position = dict(kind="learned", max_length=65)
    image = dict(num_layers=3, blocks=dict(L=block(4, width)), position=position, stem=stem)
    c.model = dict(vocab_size=vocab, width=width, encoder=image, head=head)
    text = dict(num_layers=3, blocks=dict(L=block(4, width)), position=dict(kind="learned", max_length=length))
    c.recipe = dict(
        kind="two_encoders",
        text=dict(vocab_size=vocab, width=width, decoder=text, head=head),
        shift=4,
    )
    c.data = dict(
        sources=dict(openmoji=dict(kind="package", path="openmoji", format="captioned")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
        decoder_length=length,
    )
    c.optimizer = dict(name="adamw", learning_rate=1e-3, schedule=dict(kind="cosine", warmup=20, final=0.0))
    c.train = dict(steps=137, batch_size=128)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None)
    c.log = dict(every=10, samples=())
    return c

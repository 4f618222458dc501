"""Any model family, at its published size or in miniature, by the name of its preset in lm/models/presets/.

    python -m lm.train --config=configs/family.py:tiny/qwen.QWEN3_0_6B --workdir=runs/tiny_qwen3
    python -m lm.train --config=configs/family.py:llama.SMOLLM2_135M --workdir=runs/smollm2

Trains a decoder causally, an encoder by masking, and an encoder-decoder by span corruption. A discriminator of ELECTRA, X, is
trained on replaced tokens with its generator, X_GENERATOR. Without an argument, the model is a miniature GPT-2.

Cost: in miniature (width 64, 2 to 4 layers, all features of the family) about a minute on two CPU cores. At full size it needs
accelerators: set the mesh, the batch and the data on the command line.
"""

import importlib

from ml_collections import config_dict

from lm import config
from lm.config import resolve
from lm.errors import UserError, nearest
from lm.models.miniature import tiny

OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "span_corruption"}


def preset(name):
    """The `config.Model` called "module.CONSTANT" or "module.CONSTANT[key]" in lm/models/presets/. Raises UserError
    otherwise."""
    module, _, constant = name.partition(".")
    key = None
    if "[" in constant:  # BERT_SMALL[L2_H128]
        constant, _, key = constant.rstrip("]").partition("[")
    try:
        found = vars(importlib.import_module(f"lm.models.presets.{module}"))
    except ModuleNotFoundError:
        raise UserError(
            f"no lm/models/presets/{module}.py; give a name such as --config=configs/family.py:llama.LLAMA2_7B"
        ) from None
    models = {k for k, v in found.items() if isinstance(v, config.Model | dict) and k.isupper()}
    if constant not in models:
        raise UserError(f"lm/models/presets/{module}.py has no {constant}{nearest(constant, models)}")
    return found[constant] if key is None else found[constant][key]


def get_config(name="tiny/gpt.GPT2"):
    small = name.startswith("tiny/")
    model = preset(name.removeprefix("tiny/"))
    if model.encoder and model.encoder.stem:
        kind = config.kind_of(type(model.encoder.stem))
        raise UserError(f"{name} reads {kind}, no text: configs/encoder_vit.py and configs/encdec_speech.py have such models")
    vocab = 1024 if small else model.vocab_size
    length = 128 if small else 512
    if small:
        model = tiny(model, vocab_size=vocab, length=length)
    c = config_dict.ConfigDict()
    c.model = resolve.to_dict(model)
    c.data = dict(
        sources=dict(sotu=dict(kind="tfds", path="sotu")),
        tokenizer=dict(kind="bpe", vocab_size=min(vocab, 8192)),
        encoder_length=length if model.encoder else None,
        decoder_length=length if model.decoder else None,
    )
    c.objective = dict(kind=OBJECTIVES[model.architecture])
    if model.head and model.head.outputs:
        generator = preset(f"{name.removeprefix('tiny/')}_GENERATOR")
        if small:
            generator = tiny(generator, vocab_size=vocab, length=length, table_width=model.embed.width or model.width)
        c.objective = dict(kind="replaced_tokens", generator=resolve.to_dict(generator))
    c.optimizer = dict(name="adamw", learning_rate=3e-3 if small else 3e-4, schedule=dict(kind="wsd", warmup=20, final=0.0))
    c.train = dict(steps=240, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=None, rows=256)
    c.log = dict(every=10)
    return c

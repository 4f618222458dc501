"""A fine-tuned classifier that `to_hf` writes: transformers gives a plain text the probabilities that `lm.predict` gives it."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

hf = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from lm import config, recipes, saved  # noqa: E402
from lm.config import resolve  # noqa: E402
from lm.conversion import folders  # noqa: E402
from lm.conversion.tables import canonical  # noqa: E402
from lm.evaluation.predictions import Predictor  # noqa: E402
from lm.models.miniature import tiny  # noqa: E402
from lm.models.presets.bert import BERT_BASE  # noqa: E402
from lm.models.presets.gpt import GPT2  # noqa: E402
from lm.models.presets.llama import SMOLLM2_135M  # noqa: E402
from lm.models.presets.neox import PYTHIA_70M  # noqa: E402

WORDS = ["".join(random.Random(i).choices("abcdefghij", k=5)) for i in range(60)]
TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 9), (3, 1), (20, 4), (31, 7))]


def byte_level(folder):
    """A tokenizer.json whose only special token is begin, end and padding, as GPT-2's is."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [" ".join(WORDS)], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def run_of(folder, model, *, tokenizer=None, biased=False):
    """A run of some steps on labelled texts, from random parameters. `biased`: with the head that decoders had before."""
    draw = random.Random(0)
    records = [{"text": " ".join(draw.choices(WORDS, k=8)), "label": draw.choice(("no", "yes"))} for _ in range(40)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = {
        "data.sources.mine.path": f"{folder / 'mine.jsonl'}",
        "data.cache": f"{folder / 'cache'}",
        "data.holdout": "0.3",
    }
    settings |= {"train.steps": "12", "train.batch_size": "4", "recipe.length": "48", "optimizer.learning_rate": "0.03"}
    settings |= {"log.tensorboard": "False", "evaluate.every": "None", "checkpoint.every": "None"}
    settings |= {"data.tokenizer.path": tokenizer} if tokenizer else {"data.tokenizer.vocab_size": "400"}
    run = replace(resolve.load("configs/finetune.py:labelled", settings), model=tiny(model, vocab_size=600))
    with pytest.MonkeyPatch.context() as patch:
        if biased:
            head = config.Head(tied=False, bias=True, outputs=2)
            patch.setattr("lm.recipes.start.with_head", lambda model, outputs, before: replace(model, head=head))
        recipes.train(run, folder / "run", quiet=True)
    return saved.open(folder / "run")


def ours(source):
    """[N, 2]: the probabilities of the classes of TEXTS."""
    return np.array([[p.probabilities[name] for name in ("no", "yes")] for p in Predictor(source, 3)(TEXTS)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gpt2 with one special token"])
def test_a_decoder_reads_the_class_of_a_plain_text_as_here(name, tmp_path):
    """At the eos that its tokenizer adds."""
    model = {"llama": SMOLLM2_135M, "gpt_neox": PYTHIA_70M}.get(name, GPT2)
    source = run_of(tmp_path, model, tokenizer=byte_level(tmp_path) if "one special" in name else None)
    folders.to_hf(str(tmp_path / "run"), str(tmp_path / "out"), family=None, shard_gb=1.0)
    classify = hf.pipeline("text-classification", model=str(tmp_path / "out"), top_k=None)
    assert type(classify.model).__name__.endswith("ForSequenceClassification")
    found = [{one["label"]: one["score"] for one in of} for of in classify(TEXTS)]
    theirs = np.array([[of["no"], of["yes"]] for of in found])
    np.testing.assert_allclose(theirs, ours(source), atol=2e-6)
    if "one special" not in name:  # several texts at a time need padding
        batch = classify.tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            np.testing.assert_allclose(classify.model(**batch).logits.softmax(-1).numpy(), theirs, atol=2e-6)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification\n" in card and 'pipeline("text-classification"' in card


@pytest.mark.parametrize(("model", "at"), [(GPT2, -1), (SMOLLM2_135M, -1), (BERT_BASE, 0)])
def test_what_is_written_as_a_classifier_of_tokens_has_the_class_at_one_of_them(model, at, tmp_path):
    """An encoder, whose text classifiers in transformers have a layer that ours lacks, at the first token; a decoder of an
    earlier version, whose head has a bias, at the last. The card says so."""
    source = run_of(tmp_path, model, biased=model is not BERT_BASE)
    folders.to_hf(str(tmp_path / "run"), str(tmp_path / "out"), family=None, shard_gb=1.0)
    loaded, about = hf.AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(about.values()), about
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = [loaded.eval()(**tokenizer(text, return_tensors="pt")).logits[0, at] for text in TEXTS]
    np.testing.assert_allclose(torch.stack(logits).softmax(-1).numpy(), ours(source), atol=2e-6)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f".logits[0, {at}].softmax(-1)" in card and "pipeline_tag" not in card
    # And it comes back as it went.
    folders.from_hf(str(tmp_path / "out"), str(tmp_path / "back"), dtype=None, scan=None, allow_pickle=False, drop=None)
    back = saved.open(tmp_path / "back").model
    assert canonical(back).head == canonical(source.model).head

"""Pseudo-log-likelihoods equal those of minicons, which published the within-word score (arXiv 2305.10588), on tokenizers whose
words have several tokens."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
scorer = pytest.importorskip("minicons.scorer")

from lm import config, saved  # noqa: E402
from lm.conversion import folders  # noqa: E402
from lm.evaluation import text_scores  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from tests.parity.tiny import BERT, causal  # noqa: E402

CORPUS = ["The unbelievable cat sat on a mat, and the dog didn't. In 1984 prices rose 3.5%!", "Reconsidering, she re-read it."]
TEXTS = [
    "The unbelievable dog didn't sit.",
    "A cat sat: the mat.",
    "Prices re-read 1984's cats, unreconsidered, 3.5% on a dogmatic mat!",
    "the cat sat on the dog",
]


def wordpiece():
    """A WordPiece tokenizer as BERT's, of few pieces: named here, as the library's trainer breaks ties anew in each process."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    letters = sorted({letter for text in CORPUS for letter in text.lower() if letter != " "})
    pieces = [
        *names,
        *letters,
        *(f"##{letter}" for letter in letters),
        "the",
        "##at",
        "un",
        "re",
        "##ed",
        "dog",
        "##iev",
        "##able",
    ]
    found = tokenizers.Tokenizer(tokenizers.models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    found.normalizer = tokenizers.normalizers.BertNormalizer()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.decoder = tokenizers.decoders.WordPiece()
    found.add_special_tokens(names)
    ends = [(name, found.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    found.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return found, dict(zip(("pad", "cls", "sep", "unk", "mask"), names, strict=True))


def byte_level():
    """A byte-level BPE as RoBERTa's."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    found.train_from_iterator(CORPUS, trainer)
    ends = [(name, found.token_to_id(name)) for name in ("</s>", "<s>")]
    found.post_processor = tokenizers.processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return found, dict(zip(("cls", "pad", "sep", "unk", "mask"), names, strict=True))


class Fast(hf.PreTrainedTokenizerFast):
    """With the method that minicons calls, which transformers 5 took away."""

    batch_encode_plus = hf.PreTrainedTokenizerFast.__call__


CASES = {
    "bert": (wordpiece, "BertForMaskedLM", "BertConfig", BERT),
    "roberta": (byte_level, "RobertaForMaskedLM", "RobertaConfig", BERT | dict(type_vocab_size=1)),
}


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    """minicons' scorer, and what `text_scores.score` takes, of the folder that is converted from the same model."""
    make, model, settings, sizes = CASES[request.param]
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours") / "model"
    tokenizer, names = make()
    ids = {
        f"{ours}_token_id": tokenizer.token_to_id(names[name])
        for ours, name in (("pad", "pad"), ("bos", "cls"), ("eos", "sep"))
    }
    sizes = sizes | ids | dict(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=128)
    torch.manual_seed(0)
    network = causal(model, settings, **sizes)().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    network.save_pretrained(theirs)
    tokenizer.save(str(theirs / "tokenizer.json"))
    folders.from_hf(str(theirs), str(ours), dtype=None, scan=None, allow_pickle=False, drop=None)
    source = saved.open(ours)
    wrapped = Fast(tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()})
    reference = scorer.MaskedLMScorer(network, "cpu", tokenizer=wrapped)
    return reference, (Transformer(source.model), source.params(), config.Masked(), source.tokenizer())


def test_each_tokenizer_cuts_words(both):
    reference, (*_, tokenizer) = both
    for text in TEXTS:
        np.testing.assert_array_equal(tokenizer.encode(text), reference.tokenizer(text, add_special_tokens=False).input_ids)
    assert len(tokenizer.encode(TEXTS[2])) > 30


def test_the_score_is_their_within_word_left_to_right(both):
    """Their sum over tokens; their default is the mean. [CLS] and [SEP] are seen and not scored, by both."""
    reference, ours = both
    found = text_scores.score(*ours, TEXTS, length=128, stride=64)
    theirs = reference.sequence_score(TEXTS, reduction=lambda x: x.sum().item(), PLL_metric="within_word_l2r")
    means = reference.sequence_score(TEXTS, PLL_metric="within_word_l2r")
    np.testing.assert_allclose([-score.nats for score in found], theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose([-score.nats / score.tokens for score in found], means, rtol=0, atol=1e-5)
    original = reference.sequence_score(TEXTS, reduction=lambda x: x.sum().item(), PLL_metric="original")
    assert np.abs(np.array(original) - theirs)[[0, 2]].min() > 0.01  # words of several tokens

"""Converted models fill in as transformers does with the same weights: masks, and spans of T5 and BART."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

import tokenizers as tokenizers_library  # noqa: E402

from lm.data import tokenizer as tokenizers  # noqa: E402
from lm.generation import placing  # noqa: E402
from lm.generation.infill import infill  # noqa: E402
from lm.generation.samples import fill_masks  # noqa: E402
from lm.objectives import usual  # noqa: E402
from tests.parity.tiny import BART, BERT, T5, both, causal  # noqa: E402

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "the", "cat", "sat", "on", "mat", "dog", "##s", "##ing", ".", ","]


def word_pieces(folder):
    """A tokenizer of BERT's kind, as transformers saves it; theirs and ours."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    names = {line: i for i, line in enumerate((folder / "vocab.txt").read_text().split("\n"))}
    theirs = hf.BertTokenizer(vocab=names)
    theirs.save_pretrained(folder)
    return theirs, tokenizers.from_bytes((folder / "tokenizer.json").read_bytes())


def byte_level(folder):
    """A tokenizer of RoBERTa's kind, whose mask takes the space before it; theirs and ours."""
    whole = tokenizers_library.Tokenizer(tokenizers_library.models.BPE())
    whole.pre_tokenizer = tokenizers_library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = tokenizers_library.decoders.ByteLevel()
    mask = tokenizers_library.AddedToken("<mask>", lstrip=True, special=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", mask]
    alphabet = sorted(tokenizers_library.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers_library.trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    whole.train_from_iterator(["the cat sat on a mat, dogs."] * 4, trainer)
    whole.post_processor = tokenizers_library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>")
    theirs = hf.PreTrainedTokenizerFast(tokenizer_object=whole, mask_token=mask, **names)
    theirs.save_pretrained(folder)
    return theirs, tokenizers.from_bytes((folder / "tokenizer.json").read_bytes())


def unigram(folder, *, sentinels):
    """A tokenizer whose pieces begin with their space, with T5's special tokens, or with BART's; ours reads the same file."""
    special = ["<pad>", "</s>", "<unk>"] if sentinels else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    marks = [f"<extra_id_{i}>" for i in range(5)] if sentinels else []
    pieces = [*special, *(f"▁{w}" for w in WORDS[26:32]), *WORDS[:26], "▁", ".", ",", *marks]
    added = [
        {"id": pieces.index(name), "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for name in [*special, *marks]
    ]
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        "model": {"type": "Unigram", "unk_id": special.index("<unk>"), "vocab": [[p, -float(len(p) == 1)] for p in pieces]},
    }
    return tokenizers.from_bytes(json.dumps(whole).encode()), len(pieces)


@pytest.fixture(params=["bert", "roberta"])
def masked(request, tmp_path):
    """A model and a tokenizer of theirs and ours, and all pieces of the vocabulary by their score where a text has masks."""
    tokenizer, ours = (word_pieces if request.param == "bert" else byte_level)(tmp_path)
    name = {"bert": "Bert", "roberta": "Roberta"}[request.param]
    sizes = BERT | dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    theirs, model = both(causal(f"{name}ForMaskedLM", f"{name}Config", **sizes), tmp_path, noise=0.3)

    def scores(text):
        text = text.replace("[MASK]", tokenizer.mask_token)
        found = hf.pipeline("fill-mask", model=theirs, tokenizer=tokenizer, top_k=len(tokenizer))(text)
        return found if isinstance(found[0], list) else [found]

    return model, ours, scores


@pytest.mark.parametrize("kind", ["word pieces", "bytes", "sentences"])
def test_a_token_that_continues_a_word_is_joined_to_it_and_one_that_begins_a_word_is_not(tmp_path, kind):
    """As infill does, in whatever way a tokenizer marks where words begin; and in brackets, as samples are shown."""
    if kind == "sentences":
        tokenizer, _ = unigram(tmp_path, sentinels=False)
    else:
        tokenizer = (word_pieces if kind == "word pieces" else byte_level)(tmp_path)[1]
    token = lambda text: int(tokenizer.encode(text)[-1])  # the last piece of these words
    sat, rest = token("cat sat"), token("cats")
    assert tokenizer.decode([rest]).strip(" #") == "s" and tokenizer.decode([sat]).strip() == "sat"
    place = lambda text, *tokens, **how: placing.with_tokens(tokenizer, text, tokens, **how)
    assert place("the cat[MASK] on", rest) == place("the cat [MASK] on", rest) == "the cats on"
    assert place("the cat [MASK] on [MASK].", sat, rest) == "the cat sat ons."
    assert place("the cat [MASK] on", sat, shown="[{}]") == "the cat [sat] on" and place("[MASK] on", sat) == "sat on"
    assert place("the cat [MASK] on", rest, shown="[{}]") == "the cat[s] on"


def test_masks_have_the_scores_of_the_pipeline(masked):
    text = "the cat [MASK] on a mat."
    model, ours, scores = masked
    (every,) = scores(text)
    wanted = {w["token"]: w["score"] for w in every if not ours.special[w["token"]]}
    shown, (found,) = fill_masks(*model, ours, usual("encoder"), text, 10, ends=True)
    left = sum(wanted.values())  # ours is a distribution over what texts consist of
    for (token, log_prob), (best, score) in zip(found, sorted(wanted.items(), key=lambda w: -w[1]), strict=False):
        assert token == best and np.exp(log_prob) == pytest.approx(score / left, rel=1e-4)
    (filled,) = infill(*model, ours, None, [text])[0]
    assert filled.tokens == 1 and filled.text.replace(" ", "") == shown.replace(" ", "")
    if (best := found[0][0]) == every[0]["token"]:
        assert filled.log_prob == pytest.approx(np.log(every[0]["score"]), abs=1e-4)


def test_several_masks_are_each_theirs(masked):
    """One step fills in all masks by themselves, as the pipeline does for a text with several."""
    text = "the [MASK] sat on [MASK], dogs."
    model, ours, scores = masked
    best = [next(w["token"] for w in one if not ours.special[w["token"]]) for one in scores(text)]
    for order in ("confidence", "mask_predict"):
        (filled,) = infill(*model, ours, None, [text], steps=1, order=order)[0]
        assert [s.strip() for s in filled.spans] == [ours.decode([i]).strip() for i in best]


def parsed(ids, sentinels, eos):
    """{number of the sentinel: the tokens behind its first occurrence}, as T5's answers are read."""
    spans, current = {}, None
    for token in ids[: ids.index(eos)] if eos in ids else ids:
        if token in sentinels:
            current = sentinels.index(token) if sentinels.index(token) not in spans else None
            spans.setdefault(sentinels.index(token), [])
        elif current is not None:
            spans[current].append(token)
    return spans


def test_spans_of_t5_are_those_of_their_generate(tmp_path):
    tokenizer, size = unigram(tmp_path, sentinels=True)
    settings = T5 | dict(vocab_size=size, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    settings |= dict(relative_attention_max_distance=40)
    theirs, model = both(causal("T5ForConditionalGeneration", "T5Config", **settings), tmp_path, noise=0.3)
    texts, new, some = (
        ["the [MASK] on a [MASK].", "[MASK] sat", "the cat [MASK]", "[MASK], [MASK] [MASK]", "dogs [MASK] a [MASK]"],
        30,
        0,
    )
    found = infill(*model, tokenizer, None, texts, new_tokens=new, slots=2)
    for text, (filled,) in zip(texts, found, strict=True):
        parts, read = text.split("[MASK]"), []
        for k, part in enumerate(parts[:-1]):
            read += [*tokenizer.encode(part.removesuffix(" ")).tolist(), tokenizer.sentinel_ids[k]]
        read = torch.tensor([[*read, *tokenizer.encode(parts[-1]).tolist(), 1]])
        out = theirs.generate(input_ids=read, max_new_tokens=new, do_sample=False, suppress_tokens=[0, 2])[0, 1:].tolist()
        spans = parsed(out, list(tokenizer.sentinel_ids), 1)
        wanted = [tokenizer.decode(spans.get(k, [])).strip() for k in range(len(parts) - 1)]
        assert [span.strip() for span in filled.spans] == wanted and filled.tokens == len(out)
        some += sum(map(bool, wanted))
        with torch.no_grad():
            logits = theirs(input_ids=read, decoder_input_ids=torch.tensor([[0, *out[:-1]]])).logits[0]
        each = torch.log_softmax(logits, -1)[torch.arange(len(out)), torch.tensor(out)]
        assert filled.log_prob == pytest.approx(each.sum().item(), rel=1e-4)
    assert some  # a random model, too, writes sentinels


def test_a_text_that_bart_rewrites_is_theirs(tmp_path):
    tokenizer, size = unigram(tmp_path, sentinels=False)
    settings = BART | dict(vocab_size=size, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
    settings |= dict(forced_bos_token_id=None, forced_eos_token_id=None, max_position_embeddings=64)
    theirs, model = both(causal("BartForConditionalGeneration", "BartConfig", **settings), tmp_path, noise=0.3)
    text = "the cat [MASK] a mat."
    read = [0, *tokenizer.encode("the cat"), tokenizer.mask_id, *tokenizer.encode(" a mat."), 2]
    out = theirs.generate(
        input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([[2, 0]]), max_new_tokens=20, do_sample=False,
        num_beams=1, suppress_tokens=[0, 1, 3, 4],
    )[0, 2:].tolist()  # fmt: skip
    (filled,) = infill(*model, tokenizer, None, [text], new_tokens=20)[0]
    assert filled.text == tokenizer.decode(out[: out.index(2)] if 2 in out else out)
    assert filled.spans is None or filled.text == f"the cat{filled.spans[0]} a mat."

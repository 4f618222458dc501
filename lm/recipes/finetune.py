"""Fine-tuning: a pretrained model learns to label texts or to answer questions, and is tested on records that are held out.

It is a run like pretraining; configs/finetune.py has the command. With `how=head` a new head on the trunk reads one position of
a text; with `how=text` a model with a decoder writes the answer.
"""

import itertools
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.config.data import LABELLED
from lm.data.corpus.prepare import Prepared, prepare
from lm.data.corpus.store import shared
from lm.data.examples import ExampleBuilder
from lm.data.record_rows import RecordRows
from lm.data.records import question_digest
from lm.data.tokenizer import Tokenizer
from lm.data.tree_reader import TreeReader
from lm.errors import UserError
from lm.evaluation.labelled import HeldOutRecords
from lm.evaluation.qa_metrics import SPLIT
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.recipes import joining, pretrain, start
from lm.training.recipe import Parts, Recipe
from lm.training.task import Task


class FineTuning(Recipe):
    """Serves one run. `complete` must be called first: it keeps what the other methods need of the model to start from."""

    why_left_out = "beyond recipe.length a text keeps both its ends, and a conversation its beginning"
    tokenizer: Tokenizer | None = None  # of that model; None: that of `run.data`
    prepared: Prepared | None = None
    fresh: tuple[str, ...] = ()

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in model, objective, prefix and the documents of cloze questions from the model that the run starts from,
        unless the config gives them. A resumed run reads its own checkpoint, since `train.init_from` may be gone by then."""
        begun, resumes = start.opened(run, workdir), workdir is not None and saved.is_run(workdir)
        before = begun.run if begun else None
        if resumes and not (before and isinstance(before.recipe, config.Finetune)):
            raise UserError(
                f"{workdir} holds a run that is no fine-tuning: give another --workdir, and this one as train.init_from"
            )
        recipe, model = _recipe(run), run.model or _model(begun)
        objective = before.objective if before else run.objective
        if recipe.prefix is None:
            recipe = replace(recipe, prefix=start.has_prefix(model, objective, before))
        sources = {name: _with_documents(source, recipe, before) for name, source in run.data.sources.items()}
        data = start.with_template(replace(run.data, sources=sources), begun)
        if begun and data.tokenizer.path is None and run.train.init_from is not None:  # else it is trained on the data
            self.tokenizer = begun.tokenizer()
        self.prepared = prepare(data, tokenizer=self.tokenizer, progress=False)
        if begun and not resumes and begun.tokenizer_bytes() not in (None, self.prepared.tokenizer.proto):
            raise UserError(
                f"train.init_from={run.train.init_from} was trained with another tokenizer than data.tokenizer.path="
                f"{data.tokenizer.path}: leave that out"
            )
        labelled = all(source.format in LABELLED for source in sources.values())
        classes = self.prepared.classes if labelled else None  # labels among other answers are text like these
        if recipe.classes not in (None, classes):
            raise UserError(f"recipe.classes are {recipe.classes}, and those of the data are {classes}: leave them out")
        recipe = replace(recipe, classes=classes)
        if recipe.how == "head":
            further = before if before and _has_head_for(before, recipe) else None
            model = start.with_head(model, _num_classes(recipe, data), further.model if further else None)
            self.fresh = () if further else ("head",)
        return replace(run, model=model, objective=objective, data=data, recipe=recipe)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        head = run.model.head
        if _recipe(run).how == "text" and run.model.architecture == "encoder":
            raise UserError("an encoder writes no text: set --config.recipe.how=head")
        if _recipe(run).how == "text" and (head is None or head.outputs is not None):
            raise UserError("the model has no head over the vocabulary, so it writes no text: set --config.recipe.how=head")
        start.check_records(run)
        _check_trees(run, mesh)
        joining.check_mesh(run.model, mesh)

    def task(self, run: config.Run) -> Task:
        return replace(pretrain.tokens(run), fresh=self.fresh)

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        assert self.prepared is not None, "`complete` comes first"
        return self.prepared

    def rows(self, run: config.Run, data: Prepared) -> dict[str, RecordRows]:
        recipe = _recipe(run)
        builder = ExampleBuilder.of(data.tokenizer, recipe, run.model.architecture)
        trained, tested = _drawn(run, data)
        train = {name: data.train[name].pick(numbers) for name, numbers in trained.items()} or data.train
        holdout = {name: data.train[name].pick(numbers) for name, numbers in tested.items()} or data.holdout
        how: dict[str, Any] = dict(how=recipe.how, seed=run.train.seed)
        if recipe.trees != "none" or any(source.format == "tree" for source in run.data.sources.values()):
            how["reader"] = TreeReader.of(data.tokenizer, recipe, run.model)
        rows = {
            split: RecordRows(stores, run.data, builder, shuffle=split == "train", **how)
            for split, stores in (("train", shared(train, run.data.train_share)), ("holdout", holdout))
            if stores
        }
        lengths = rows["train"].lengths
        check_positions(run.model, lengths.encoder, lengths.decoder, cure="shorten it with --config.recipe.length")
        return rows

    def check_data(self, parts: Parts) -> None:
        joining.check_documents(parts.run.model, parts.rows)
        shards = parts.mesh.shape["sequence"]
        for length in (parts.lengths.encoder, parts.lengths.decoder):
            if (length or 0) % shards:
                raise UserError(f"mesh.sequence={shards} does not divide the {length} tokens of a row: change recipe.length")
        rows: Any = parts.rows.get("holdout")
        if rows is None or rows.how == "head" or parts.data.tokenizer.unk_id is None:
            return
        for name, count in rows.unknown().items():
            if count:
                warnings.warn(
                    f"{count} of {len(rows.items[name].record)} held-out answers of source {name!r} have a word that the "
                    "tokenizer does not know, and count as wrong whatever is written; train a vocabulary that has them",
                    stacklevel=2,
                )

    def facts(self, parts: Parts) -> dict[str, Any]:
        """Counts by split and source: records, answers, shortened texts, answers that are left out, rows of an epoch."""
        return {"records": {split: rows.report() for split, rows in parts.rows.items()}}

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[HeldOutRecords]:
        """One evaluator; none if no record is held out."""
        rows = parts.rows.get("holdout")
        return [] if rows is None else [self.held_out(parts.run, parts.data, rows, parts.mesh)]

    def held_out(self, run: config.Run, data: Prepared, rows: RecordRows, mesh: Mesh) -> HeldOutRecords:
        """Tests the first `evaluate.rows` held-out records of each source, or of the training records that `recipe.develop`
        sets apart; `rows` are those of the split "holdout"."""
        recipe, (trained, tested) = _recipe(run), _drawn(run, data)
        train = {name: data.records(name, "train") for name in data.train}
        held_out = {name: [train[name][n] for n in numbers] for name, numbers in tested.items()}
        ends = np.cumsum([0, *(about["rows"] for about in rows.report().values())])
        most = run.evaluate.rows or rows.count
        return HeldOutRecords(
            Transformer(run.model),
            rows,
            np.concatenate([np.arange(a, min(b, a + most)) for a, b in itertools.pairwise(ends.tolist())]),
            records=held_out or {name: data.records(name, "holdout") for name in data.holdout},
            trained=[of[n] for name, of in train.items() for n in trained.get(name, range(len(of)))],
            classes=recipe.classes or (),
            batch_size=run.evaluate.batch_size or run.train.batch_size,
            mesh=mesh,
            split=SPLIT[recipe.compare],
        )


def _recipe(run: config.Run) -> config.Finetune:
    assert isinstance(run.recipe, config.Finetune)
    return run.recipe


def _check_trees(run: config.Run, mesh: Mesh) -> None:
    """UserError unless rows are trees exactly where the model reads some, and the data has them."""
    how, encoder = _recipe(run).trees, run.model.encoder
    reads = encoder is not None and any(isinstance(block.mixer, config.TreeLstm) for block in encoder.blocks.values())
    if reads != (how != "none"):
        raise UserError(
            "the encoder has a tree-LSTM, and recipe.trees=none reads sequences: set it to given, balanced or right"
            if reads
            else f"recipe.trees={how}, and the encoder has no tree-LSTM to read them: set it to none, or add one"
        )
    if reads and run.model.decoder:
        raise UserError("a head reads the root of a tree in an encoder: leave the decoder out")
    if reads and mesh.shape["sequence"] > 1:
        raise UserError("mesh.sequence splits rows, and a tree is computed as a whole: set it to 1")
    for name, source in run.data.sources.items():
        if how in ("given", "shuffled") and source.format != "tree":
            raise UserError(
                f"recipe.trees={how}, and source {name!r} of format={source.format} has no trees: set format=tree, or "
                "recipe.trees=balanced or right"
            )


Numbers = dict[str, np.ndarray]  # source -> numbers of training records, int64, sorted


def _drawn(run: config.Run, data: Prepared) -> tuple[Numbers, Numbers]:
    """The training records that are trained on, of all sources, and those that `recipe.develop` tests on, whose questions are
    in none that are trained on. {} where the config draws none: all are trained on, and the held-out records tested."""
    recipe, trained, tested = _recipe(run), Numbers(), Numbers()
    if recipe.labels is None and recipe.develop is None:
        return trained, tested
    for s, (name, store) in enumerate(data.train.items()):
        order = np.random.default_rng((run.train.seed, s)).permutation(store.num_documents)
        set_apart, rest = np.split(order, [recipe.develop or 0])
        if recipe.develop is not None:
            questions = [question_digest(record) for record in data.records(name, "train")]
            tested_on = {questions[n] for n in set_apart}
            rest = np.array([n for n in rest if questions[n] not in tested_on], int)
        if len(rest) < (recipe.labels or 1):
            raise UserError(
                f"source '{name}' has {len(order)} training records, too few for recipe.labels={recipe.labels} beside "
                f"recipe.develop={recipe.develop} with other questions: lower them"
            )
        trained[name] = np.sort(rest[: recipe.labels])
        if recipe.develop is not None:
            tested[name] = np.sort(set_apart)
    return trained, tested


def _model(begun: saved.Saved | None) -> config.Model:
    if begun is None:
        raise UserError(
            "a fine-tuning needs a model to start from: give --config.train.init_from=RUN, a run or a converted model, or "
            "--config.model in the config, which then learns this task alone"
        )
    return begun.model


def _with_documents(source: config.Source, recipe: config.Finetune, before: config.Run | None) -> config.Source:
    """A cloze source with the documents that it asks about: those of the run before, or, if that is a fine-tuning on cloze
    questions, the documents of its questions."""
    if source.kind != "cloze":
        return source
    documents = source.documents
    if documents is None and before is not None:
        asked = [other.documents for other in before.data.sources.values() if other.kind == "cloze"]
        documents = asked[0] if asked else before.data if isinstance(before.recipe, config.Pretrain | config.Distill) else None
    if documents is None:
        raise UserError(
            f"the questions of '{source.path}' are about a run's documents, and train.init_from has none: take a pretraining "
            "run, or another task"
        )
    return replace(source, documents=documents, length=source.length or recipe.length - 4)


def _num_classes(recipe: config.Finetune, data: config.Data) -> int:
    if not recipe.classes:
        without = " and ".join(repr(name) for name, source in data.sources.items() if source.format not in LABELLED)
        raise UserError(f"{without} has no classes that a head could tell apart: set --config.recipe.how=text")
    return len(recipe.classes)


def _has_head_for(before: config.Run, recipe: config.Finetune) -> bool:
    """Whether the run before is a fine-tuning whose head has the same classes, so that its head is trained further."""
    tuned = before.recipe
    return isinstance(tuned, config.Finetune) and tuned.how == "head" and tuned.classes == recipe.classes


if __name__ == "__main__":
    print(
        "error: fine-tuning has a config now: python -m lm.train --config=configs/finetune.py:TASK[.head|.text] "
        "--config.train.init_from=DIR --workdir=NEW",
        file=sys.stderr,
    )
    sys.exit(2)

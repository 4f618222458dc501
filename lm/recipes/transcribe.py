"""Speech with its text: an encoder of frames learns the text under CTC, or an encoder-decoder writes it.

Frames are made once and kept in the data's cache (`lm.data.sound_frames`). configs/encoder_ctc_speech.py and
configs/encdec_speech.py have the commands.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import config, sharding
from lm.data.attached import folder_of
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.records import Speech
from lm.data.sound_frames import open_frames
from lm.data.sound_rows import SpeechRows
from lm.errors import UserError
from lm.evaluation.reranking import LanguageModel
from lm.evaluation.transcripts import Transcripts
from lm.generation.transcriber import BLANK, Transcriber
from lm.losses.ctc import ctc
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.recipes import pretrain, start
from lm.training.recipe import Parts, Recipe
from lm.training.task import Task
from lm.types import Unaligned, WeightedMean

SHOWN = 3  # held-out utterances in the log and the report


class Transcription(Recipe):
    """Serves one run."""

    _test: Transcripts | None = None  # made once, because it opens the language model
    why_left_out = "utterances that are longer than model.encoder.stem.frames or recipe.answer"

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        stem = run.model.encoder.stem if run.model.encoder else None
        if not isinstance(stem, config.Frames):
            raise UserError("recipe 'transcribe' reads frames of sound: set --config.model.encoder.stem.kind=frames")
        if run.model.head is None or run.model.head.outputs is not None:
            raise UserError("recipe 'transcribe' writes tokens: give the model a head of the vocabulary")
        for name, source in run.data.sources.items():
            if source.format != "speech":
                raise UserError(
                    f"data.sources.{name} has format={source.format}, and this recipe learns from recordings: set format=speech"
                )
        if stem.length % mesh.shape["sequence"]:
            raise UserError(f"mesh.sequence={mesh.shape['sequence']} does not divide the {stem.length} vectors of a row")
        cure = "lower recipe.answer, or raise --config.model.{stack}.position.max_length"
        check_positions(run.model, stem.length, _recipe(run).answer if run.model.decoder else None, cure=cure)
        start.check_records(run)

    def task(self, run: config.Run) -> Task:
        return pretrain.tokens(run) if run.model.decoder else unaligned(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, SpeechRows]:
        splits = {"train": shared(data.train, run.data.train_share), "holdout": data.holdout}
        return {split: self._rows(run, data, split) for split, stores in splits.items() if stores}

    def _rows(self, run: config.Run, data: Prepared, split: str) -> SpeechRows:
        stores, stem, said = getattr(data, split), _stem(run), recordings(data, split)
        frames = {
            name: open_frames(data.beside.parent, said[name], folder_of(run.data.sources[name]), stem.bands) for name in stores
        }
        writes, training = run.model.decoder is not None, split == "train"
        return SpeechRows(run.data, stores, frames, stem, _recipe(run), writes, run.train.seed, training)

    def row(self, rows: SpeechRows) -> Any:
        return jax.tree.map(lambda x: np.zeros_like(x[0]), rows.rows(np.arange(1)))

    def check_data(self, parts: Parts) -> None:
        if parts.run.model.decoder is None and not parts.data.tokenizer.special[BLANK]:
            raise UserError(
                f"id {BLANK} of data.tokenizer is a piece of text, and under CTC it is the blank: train a tokenizer here"
            )

    def facts(self, parts: Parts) -> dict[str, Any]:
        return {"utterances": {split: rows.sizes for split, rows in parts.rows.items()}}

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        return [self._transcripts(parts, frozen)] if "holdout" in parts.rows else []

    def _transcripts(self, parts: Parts, frozen: Any) -> Transcripts:
        if self._test is None:
            self._test = transcripts(parts, frozen)
        return self._test

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, str]]:
        """What is said in the first held-out utterances, and what the model hears."""
        if "holdout" not in parts.rows or parts.run.log.sample_tokens < 1:
            return []
        test = self._transcripts(parts, frozen)
        index = np.linspace(0, test.rows.count - 1, SHOWN).astype(np.int64)
        index = np.append(index, np.full(-SHOWN % test.batch_size, test.rows.count))[: max(test.batch_size, SHOWN)]
        heard = test.heard(params, sharding.global_batch(test.rows.rows, index, test.mesh))
        pairs = zip(test.said(index[:SHOWN]), heard, strict=False)
        return [{"prompt": f"said: {said}", "text": f"heard: {found[0].text if found else ''}"} for said, found in pairs]


def transcripts(parts: Parts, frozen: Any) -> Transcripts:
    """The test of held-out utterances."""
    run, recipe = parts.run, _recipe(parts.run)
    return Transcripts(
        parts.rows["holdout"],
        recordings(parts.data, "holdout"),
        parts.scorer(frozen),
        Transcriber(Transformer(run.model), parts.data.tokenizer, recipe.answer, recipe.beams),
        parts.test_size,
        parts.mesh,
        run.evaluate.rows,
        _prior(recipe),
        recipe.weight,
    )


def unaligned(run: config.Run) -> Task:
    """The task of an encoder under CTC."""
    model = Transformer(run.model)

    def loss(params: Any, batch: Unaligned, rngs: Any = None) -> WeightedMean:
        logits: Any = model.apply({"params": params}, batch.example, rngs=rngs)
        return ctc(logits, batch, BLANK)

    return Task(
        models={"model": run.model},
        init=lambda key, batch: model.init(key, getattr(batch, "example", batch))["params"],
        loss=lambda params, frozen, batch, rngs: (loss(params, batch, rngs), {}),
        scores=lambda params, frozen, batch: {"loss": loss(params, batch)},
        passes=lambda lengths: [(run.model, None)],
        writer=lambda params, frozen: (model, params),
    )


def _prior(recipe: config.Transcribe) -> LanguageModel | None:
    """The model that orders what is heard, if one is asked."""
    folder = recipe.language_model if recipe.weight else None
    return None if folder is None else LanguageModel.open(folder, name="recipe.language_model")


def recordings(data: Prepared, split: str) -> dict[str, list[Speech]]:
    """The recordings of each source of a split, in the order of its store."""
    every = {name: data.records(name, split) for name in getattr(data, split)}
    return {name: [record for record in some if isinstance(record, Speech)] for name, some in every.items()}


def _stem(run: config.Run) -> config.Frames:
    stem = run.model.encoder.stem if run.model.encoder else None
    assert isinstance(stem, config.Frames)  # `check` comes first
    return stem


def _recipe(run: config.Run) -> config.Transcribe:
    assert isinstance(run.recipe, config.Transcribe)
    return run.recipe

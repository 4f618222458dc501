"""Writes what is said in recordings, by a model that was trained on speech.

  python -m lm.transcribe --from=runs/ctc a.wav b.wav
  python -m lm.transcribe --from=runs/ctc --jsonl=recordings.jsonl
  python -m lm.transcribe --from=runs/ctc --heldout --nbest=8 > heard.jsonl
  python -m lm.score --from=runs/text --nbest=heard.jsonl > ordered.jsonl

Recordings are WAV files or, with soundfile (pip install -e '.[sound]'), FLAC, OGG and others. --jsonl names a file of lines
{"audio": "a.wav"}, whose recordings are named from its folder on, or reads standard input ("-"); with "text" in a line, what is
really said, word errors are counted. --heldout reads the held-out recordings of the model's own run.

For each recording a line with its name and its text. With --nbest up to so many readings of each, the best first, are JSON
lines: {"utterance": "a.wav", "text": "...", "score": -12.3}, and "reference" where it is known. They are what lm.score --nbest
puts in order with a language model.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import cli, paths, untrusted
from lm.config import Frames, Transcribe
from lm.config.ranges import Count
from lm.errors import UserError, printable

NO_SOUND = "there is no recording: give files, --jsonl=FILE or --heldout"


@dataclass(frozen=True)
class Recording:
    """One recording: its name and its record, whose text may be empty."""

    name: str
    record: Any  # lm.data.records.Speech
    folder: Path | None  # from which the record's file is named


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if sum((bool(flags.files), flags.jsonl is not None, flags.heldout)) != 1:
        raise UserError(f"files, --jsonl and --heldout are three places of recordings: give one of them ({NO_SOUND})")
    cli.start_jax(flags.source)
    from lm import saved
    from lm.data.corpus.prepare import prepare
    from lm.evaluation.text_scores import distance

    source = saved.open(flags.source)
    if source.run is None or not isinstance(source.run.recipe, Transcribe):
        raise UserError(f"--from={flags.source} was not trained on speech (recipe.kind=transcribe): give a run that was")
    if flags.heldout:
        data = prepare(source.run.data, progress=False)
        recordings = [one for name in data.holdout for one in _of_split(source.run.data.sources[name], name, data)]
    else:
        recordings = _of_lines(flags.jsonl) if flags.jsonl else [_of_file(name) for name in flags.files]
    wrong = words = 0
    for recording, found in _heard(source, recordings, flags):
        best = found[0].text if found else ""
        if flags.nbest is None:
            print(f"{printable(recording.name)}\t{printable(best)}", flush=True)
        for one in found if flags.nbest else ():
            line = {"utterance": recording.name, "text": one.text, "score": round(one.log_prob, 4)}
            known = {"reference": recording.record.text} if recording.record.text else {}
            print(json.dumps(line | known, ensure_ascii=False), flush=True)
        if recording.record.text:
            said = recording.record.text.split()
            wrong, words = wrong + distance(best.split(), said), words + len(said)
    if words:
        print(f"{wrong} word errors of {words} words ({wrong / words:.2%})", file=sys.stderr)
    return 0


def _heard(source: Any, recordings: Sequence[Recording], flags: Any) -> Iterator[tuple[Recording, list[Any]]]:
    """Each recording with its readings, the best first."""
    import jax

    from lm.data import sound, sound_frames
    from lm.data.sound_rows import stream_of
    from lm.generation.transcriber import Transcriber
    from lm.models.transformer import Transformer

    model, stem, run = Transformer(source.model), source.model.encoder.stem, source.run
    assert isinstance(stem, Frames)
    params = source.params(device=jax.local_devices()[0])
    beams = flags.beams or max(flags.nbest or 1, run.recipe.beams)
    transcriber = Transcriber(model, source.tokenizer(), run.recipe.answer, beams)
    size = min(flags.batch_size, len(recordings))
    for first in range(0, len(recordings), size):
        part = recordings[first : first + size]
        frames = [sound.log_mel(sound_frames.waveform(one.record, one.folder), stem.bands) for one in part]
        for one, of in zip(part, frames, strict=True):
            if len(of) > stem.frames:
                raise UserError(
                    f"{one.name} has {len(of) / sound.FRAMES:.1f} seconds, and the model hears {stem.frames / sound.FRAMES:g}: "
                    "cut it into parts"
                )
        blank = [frames[0][:0]] * (size - len(part))  # one shape
        found = transcriber(params, stream_of([*frames, *blank], stem))
        yield from zip(part, (some[: flags.nbest or 1] for some in found), strict=False)


def _of_file(name: str) -> Recording:
    from lm.data.records import Speech

    return Recording(name, Speech(str(paths.expanded(name)), ""), None)


def _of_lines(file: str) -> list[Recording]:
    from lm.data.records import Speech

    text = cli.standard_input(NO_SOUND) if file == "-" else paths.text(file, name="--jsonl")
    folder = None if file == "-" else paths.expanded(file).parent
    out = []
    for where, record in untrusted.parse_lines(text, file):
        audio, said = record.get("audio"), record.get("text", "")
        if not isinstance(audio, str) or not isinstance(said, str):
            raise UserError(f"{where} names no recording: {{'audio': 'a.wav', 'text': 'what is said'}}")
        out.append(Recording(audio, Speech(audio, said), folder))
    if not out:
        raise UserError(NO_SOUND)
    return out


def _of_split(source: Any, name: str, data: Any) -> list[Recording]:
    """The held-out recordings of one source, which are numbered, since the same file may be there twice."""
    from lm.data.attached import folder_of

    records = data.records(name, "holdout")
    return [Recording(f"{name}/{i}", record, folder_of(source)) for i, record in enumerate(records)]


def parser() -> cli.Parser:
    p = cli.parser("lm.transcribe", __doc__)
    p.add_argument("files", nargs="*", metavar="FILE", help="recordings")
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run")
    p.add_argument("--jsonl", metavar="FILE", help="JSON lines that name recordings; -: standard input")
    p.add_argument("--heldout", action="store_true", help="the held-out recordings of the model's run")
    p.add_argument("--nbest", hint=Count, help="write so many readings of each as JSON lines")
    p.add_argument("--beams", hint=Count, help="texts to look for at a time; default: --nbest, or as in training")
    p.add_argument("--batch_size", hint=Count, default=16, help="recordings at a time")
    return p


if __name__ == "__main__":
    cli.enter(main)

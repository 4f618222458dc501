"""Continues or fills in texts with a run's model or a converted one.

  python -m lm.generate --from=runs/quickstart "My fellow Americans,"
  python -m lm.generate --from=D --temperature=0.7 --samples=3 "Once"
  python -m lm.generate --from=D --temperature=0 --stop='.' < prompt.txt
  python -m lm.generate --from=D --beams=4 "Once upon a time"
  python -m lm.generate --from=D --jsonl < prompts.jsonl > answers.jsonl
  python -m lm.generate --from=D --regex="[0-9]{4}" "It was in "
  python -m lm.generate --from=D --draft=SMALL --guesses=4 "Once"
  python -m lm.generate --from=runs/encoder_masked "The [MASK] of the union"
  python -m lm.generate --from=runs/draws --pictures=drawn "red apple"
  python -m lm.generate --from=runs/captioner --image=a.png
  python -m lm.generate --from=runs/captioner --image=a.png "what colour is it?"

Without a prompt, standard input is one. A decoder or an encoder-decoder continues a prompt as its objective asks; with [MASK]
in it, a model that fills in does so. An encoder that predicts masked tokens says of each [MASK] which tokens are likeliest;
with --order it fills them in over several steps, each given those before it.

With --jsonl each line read is {"prompt": "..."} with any of new_tokens, samples, stop, seed and the other settings of sampling
in it. Each line written is a sample: prompt, sample, text, finish (why it ended: "end" of the text, "stop" string or
"length"), tokens, and log_prob, the nats of what was written under the model's own distribution. --top=K adds each token with
the likeliest K in its place.

A model that draws (recipe.kind=drawing) takes captions, and its pictures become PNG files in the folder --pictures. One that
reads images (recipe.kind=image_text) writes the caption of --image, or answers the questions about it.

What a sample is depends on its prompt, its settings, its seed and its number alone, and on no other prompt.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lm import atomic, cli, paths, untrusted
from lm.config import Asked, Drawing, Order, Sampling, Weights, resolve
from lm.config.ranges import Count, Natural
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.generation.writer import Writer  # imports jax

SLOTS = 8
NO_PROMPT = "there is no prompt: give one, or a text on standard input"
__path__: list[str] = []  # imports of submodules that it had as a package reach `lm.moved`


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.pictures is not None or flags.image is not None:
        return _draw(flags) if flags.image is None else _look(flags)
    if flags.jsonl and flags.prompts:
        raise UserError("--jsonl reads prompts from standard input: leave out the others")
    stop = [text.replace("\\n", "\n") for text in flags.stop]
    first = {"new_tokens": flags.new_tokens, "samples": flags.samples, "stop": stop}
    first |= cli.sampling_of(flags)
    more = ("beams", "length_penalty", "order", "steps", "regex", "schema")
    first |= {name: value for name in more if (value := getattr(flags, name)) is not None}
    if flags.jsonl:
        asked = list(_lines(cli.standard_input(NO_PROMPT).split("\n"), first))
    else:
        asked = [resolve.build(Asked, first | {"prompt": prompt}) for prompt in _prompts(flags.prompts)]
    if flags.draft and not flags.guesses:
        raise UserError(f"--draft={flags.draft} guesses nothing without --guesses: give --guesses=4")
    cli.start_jax(flags.source)
    settings: dict[str, Any] = dict(guesses=flags.guesses, kind=flags.cache)
    settings |= dict(draft=_draft(flags.draft)) if flags.draft else {}
    model = writer(flags.source, slots=flags.slots, top=flags.top, weights=flags.weights, **settings)
    alone = not flags.jsonl and len(asked) == 1 and asked[0].samples == 1 and not flags.top
    say = lambda text: print(cli.readable(text), end="", flush=True)
    for sample in model.write(asked, stream=say if alone else None):
        if flags.jsonl:
            print(json.dumps(sample.to_json(), ensure_ascii=False), flush=True)
        elif alone:
            print()
        else:
            print(f"--- {sample.asked.prompt!r}, sample {sample.number}\n{cli.readable(sample.text)}", flush=True)
            for token in sample.tokens if flags.top else ():
                print(f"  {token}")
    return 0


def writer(folder: str, *, slots: int, top: int = 0, weights: Weights | None = None, **engine: Any) -> "Writer":
    """What writes with the model in a folder, its weights as `lm.models.quantized` has them. `engine`: settings of
    `lm.generation.engine.Engine`. UserError if it has no head over the vocabulary."""
    import jax

    from lm import saved
    from lm.generation.writer import Writer
    from lm.models import quantized
    from lm.models.transformer import Transformer

    source = saved.open(folder)
    if not source.model.head or source.model.head.outputs is not None:
        raise UserError(
            f"--from={folder} has no head over the vocabulary, so it writes no text; if it was trained on labels: "
            f"python -m lm.predict --from={folder}"
        )
    if source.run is not None and isinstance(source.run.recipe, Drawing):
        raise UserError(f"--from={folder} draws, and writes no text: give --pictures=FOLDER, and captions")
    if source.model.encoder and source.model.encoder.stem:
        raise UserError(f"--from={folder} reads no text in its encoder: of a model that reads images give --image=FILE")
    model, objective = Transformer(source.model), source.run.objective if source.run else None
    params = quantized.weights(model, source.params(device=jax.local_devices()[0]), weights)
    return Writer(model, params, source.tokenizer(), objective, slots=slots, top=top, **engine)


def _draft(folder: str) -> tuple[Any, Any]:
    """A smaller model, which guesses, and its parameters."""
    import jax

    from lm import saved
    from lm.models.transformer import Transformer

    source = saved.open(folder, name="--draft")
    return Transformer(source.model), source.params(device=jax.local_devices()[0])


def _draw(flags: Any) -> int:
    """Writes the pictures that a model draws after captions as PNG files, and prints their names."""
    folder, how = paths.local(flags.pictures, name="--pictures"), resolve.build(Sampling, cli.sampling_of(flags))
    captions = _prompts(flags.prompts)
    cli.start_jax(flags.source)
    import jax

    from lm import saved
    from lm.data.image_text import CaptionPrompt
    from lm.data.png import png
    from lm.generation.painter import Painter
    from lm.models.autoencoder import Autoencoder
    from lm.models.transformer import Transformer

    source, device = saved.open(flags.source), jax.local_devices()[0]
    recipe = source.run.recipe if source.run else None
    if not isinstance(recipe, Drawing):
        raise UserError(f"--from={flags.source} draws no pictures: give a run with recipe.kind=drawing")
    codes = saved.open(recipe.codes, name="recipe.codes")
    if codes.digest() != recipe.codes_sha256 or codes.run is None:
        raise UserError(f"recipe.codes={recipe.codes} is not the run whose codes --from={flags.source} draws: put that back")
    autoencoder, tokenizer = Autoencoder(codes.model, codes.run.recipe), source.tokenizer()  # ty: ignore[invalid-argument-type]
    length = recipe.text + autoencoder.stem.length
    pixels = codes.params(autoencoder.abstract(device))
    painter = Painter(Transformer(source.model), autoencoder, pixels, tokenizer.vocab_size, length, flags.slots)
    ids = [CaptionPrompt(tokenizer, recipe.text).ids(caption) for caption in captions]
    folder.mkdir(parents=True, exist_ok=True)
    for i, drawn in enumerate(painter.draw(source.params(device=device), ids, how, samples=flags.samples)):
        for number, picture in enumerate(drawn):
            file = folder / f"{i}-{number}.png"
            atomic.write_bytes(file, png(picture))
            print(f"{file}  {cli.readable(captions[i])}", flush=True)
    return 0


def _look(flags: Any) -> int:
    """Prints what a model that reads images writes about one: a caption, or its answers to questions."""
    file, how = Path(flags.image), resolve.build(Sampling, {"temperature": 0.0} | cli.sampling_of(flags))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"--image={flags.image} cannot be read ({error.strerror})") from None
    cli.start_jax(flags.source)
    import jax

    from lm import saved
    from lm.config import Patches
    from lm.data.image_text import read_before
    from lm.data.images import decoded, patches
    from lm.generation.engine import Request
    from lm.generation.text_engine import engine_for
    from lm.models.transformer import Transformer
    from lm.types import vector_stream

    source = saved.open(flags.source)
    stem = source.model.encoder.stem if source.model.encoder else None
    if not isinstance(stem, Patches) or source.model.decoder is None:
        raise UserError(f"--from={flags.source} does not write about images: give a run with recipe.kind=image_text")
    tokenizer, asked = source.tokenizer(), flags.prompts or [""]
    pixels = decoded(content, stem.image, f"--image={flags.image}")
    stream = vector_stream(patches(pixels, stem.size)[None], stem.length)
    requests = [Request(read_before(tokenizer, question), flags.new_tokens, how, stream) for question in asked]
    params, end = source.params(device=jax.local_devices()[0]), tokenizer.require("eos")
    engine = engine_for(requests, Transformer(source.model), params, tokenizer, slots=flags.slots, ends=[end])
    for (sample,) in engine.write(requests):
        print(cli.readable(tokenizer.decode([one.token for one in sample if one.token != end]).strip()), flush=True)
    return 0


def _prompts(given: list[str]) -> list[str]:
    if given:
        return given
    text = cli.standard_input(NO_PROMPT)
    if not text:
        raise UserError("standard input is empty, and was to be the prompt")
    return [text.removesuffix("\n")]


def _lines(lines: Iterable[str], first: dict[str, Any]) -> Iterator[Asked]:
    """What lines of JSON ask for; `first` has what they leave out. UserError names the line that is wrong."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of standard input"
        try:
            asked = untrusted.strict_json(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}): give an object a line") from None
        if not isinstance(asked, dict) or "prompt" not in asked:
            raise UserError(f'{where} has no prompt: {{"prompt": "..."}}')
        own = asked.get("stop")
        schema = {"schema": json.dumps(asked["schema"])} if isinstance(asked.get("schema"), dict) else {}
        yield resolve.build(Asked, first | asked | ({"stop": [own]} if isinstance(own, str) else {}) | schema, where)


def parser() -> cli.Parser:
    p = cli.parser("lm.generate", __doc__)
    p.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts to continue; [MASK] is what is to be filled in")
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--pictures", metavar="FOLDER", help="of a model that draws: where its pictures go, as PNG files")
    p.add_argument("--image", metavar="FILE", help="of a model that reads images: what it writes about, or is asked about")
    p.add_argument("--jsonl", action="store_true", help="read prompts and write samples as JSON lines")
    p.add_argument("--new_tokens", hint=Count, default=Asked.new_tokens, help="tokens that are written at most")
    p.add_argument("--samples", hint=Count, default=1, help="samples of each prompt, which is read once")
    cli.add_stop(p)
    p.add_argument("--top", hint=Natural, default=0, help="show each token with the likeliest K, and their log-probabilities")
    p.add_argument("--slots", hint=Count, default=SLOTS, help="samples that are written at the same time")
    p.add_argument("--weights", choices=get_args(Weights), help="of the model, in fewer bits (default: as they are saved)")
    p.add_argument(
        "--guesses",
        hint=Natural,
        default=0,
        help="tokens that are guessed ahead, from what followed the last ones before: the text stays the same",
    )
    p.add_argument("--draft", metavar="FOLDER", help="a smaller model of the same tokenizer, which makes the --guesses")
    p.add_argument(
        "--cache", choices=["own", "bfloat16", "int8"], default="own", help="keys and values in fewer bits (default own)"
    )
    p.add_argument("--regex", help="all of what is written matches this regular expression")
    p.add_argument("--schema", metavar="JSON", help="what is written is JSON of this schema")
    p.add_argument("--beams", hint=Natural, help="search with so many texts at a time; draws nothing")
    p.add_argument("--length_penalty", hint=float, help="of --beams: a score is log-probability / length ** this (default 1)")
    orders = get_args(Order)
    p.add_argument("--order", choices=orders, metavar="ORDER", help=f"in which masks are filled in: {', '.join(orders)}")
    p.add_argument("--steps", hint=Natural, help="of --order (default: one a mask, 10 of mask_predict, 10 a mask of gibbs)")
    cli.add_sampling(p)
    return p


if __name__ == "__main__":
    cli.enter(main)

"""Continues or fills in texts with a run's model or a converted one.

  python -m lm.generate --from=runs/quickstart "My fellow Americans,"
  python -m lm.generate --from=D --temperature=0.7 --samples=3 "Once"
  python -m lm.generate --from=D --temperature=0 --stop='.' < prompt.txt
  python -m lm.generate --from=D --beams=4 "Once upon a time"
  python -m lm.generate --from=D --jsonl < prompts.jsonl > answers.jsonl
  python -m lm.generate --from=D --regex="[0-9]{4}" "It was in "
  python -m lm.generate --from=D --draft=SMALL --guesses=4 "Once"
  python -m lm.generate --from=runs/encoder_masked "The [MASK] of the union"

Without a prompt, standard input is one. A decoder or an encoder-decoder continues a prompt as its objective asks; with [MASK]
in it, a model that fills in does so. An encoder that predicts masked tokens says of each [MASK] which tokens are likeliest;
with --order it fills them in over several steps, each given those before it.

With --jsonl each line read is {"prompt": "..."} with any of new_tokens, samples, stop, seed and the other settings of sampling
in it. Each line written is a sample: prompt, sample, text, finish (why it ended: "end" of the text, "stop" string or
"length"), tokens, and log_prob, the nats of what was written under the model's own distribution. --top=K adds each token with
the likeliest K in its place.

What a sample is depends on its prompt, its settings, its seed and its number alone, and on no other prompt.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from lm import cli, untrusted
from lm.config import Asked, Order, Weights, resolve
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
    cli.start_jax()
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
        raise UserError(f"--from={folder} has no head over the vocabulary, so it writes no text")
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

"""What a model with a bottleneck is for: texts as a few numbers, and texts of numbers.

  python -m lm.latent reconstruct --from=D "a text" "another"
  python -m lm.latent interpolate --from=D --steps=5 "a text" "another"
  python -m lm.latent paraphrase --from=D --samples=4 "a text"
  python -m lm.latent neighbours --from=D --file=lines.txt "a text"
  python -m lm.latent anomaly --from=D --file=lines.txt --other=others.txt
  python -m lm.latent map --from=D --file=lines.txt --other=others.txt --out=N

A model has a bottleneck if its config has `model.bottleneck`, as configs/encdec_autoencoder.py and configs/encdec_vae.py.
Texts are given as arguments, or as the lines of --file. A text is read up to the length of the run's rows.

reconstruct writes each text again from its vectors, and prints the share of exact copies and of tokens that are right.

interpolate writes what lies between two texts, on the straight line between their vectors.

paraphrase draws: of a variational autoencoder the vectors, at --scale times their spread, and at --temperature the words. It
prints the share of samples that are exact copies, as a model that copies paraphrases nothing.

neighbours prints the texts of --file, or of the run's held-out text, whose vectors are nearest.

anomaly scores texts by what they cost the model, nats a token: the higher, the less they are like what it was trained on. With
--other it prints the AUROC, the probability that a text of --other scores higher than one of --file: 0.5 where nothing tells
them apart. Without --file they are the run's held-out text. With --jsonl each line written is {"nats": 3.2, "other": false,
"text": "..."}.

map writes the vectors in two dimensions, by principal components, to a new folder: map.png and map.json.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm import atomic, cli, paths
from lm.config import resolve
from lm.config.ranges import Count, Name, NonNegative, Seed
from lm.errors import UserError, printable

if TYPE_CHECKING:
    import numpy as np

    from lm.evaluation.latents import Coder  # imports jax
    from lm.saved import Saved

SHOWN = 90  # characters of a text in a line
LABELS = 40  # texts of a map that have a label, at most


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    for text in getattr(flags, "texts", ()):
        resolve.build(Name, text, "the text")
    _check(flags)
    files = {name: _lines(given, f"--{name}") for name in ("file", "other") if (given := getattr(flags, name, None))}
    cli.start_jax(flags.source)
    from lm import saved
    from lm.evaluation.latents import Coder

    source = saved.open(flags.source)
    return ACTIONS[flags.command](Asked(flags, source, Coder.of(source), files))


def _check(flags: argparse.Namespace) -> None:
    """UserError for texts that the action does not take."""
    action = flags.command
    if action == "interpolate" and len(flags.texts) != 2:
        raise UserError(f"interpolate goes from one text to another, and {len(flags.texts)} are given: give two")
    if action in ("reconstruct", "paraphrase") and not flags.texts and not flags.file:
        raise UserError(f"{action} needs a text: give one or more, or --file")
    if action == "neighbours" and not flags.texts:
        raise UserError("neighbours needs the text whose neighbours are sought: give one or more")


def _lines(name: str, flag: str) -> list[str]:
    """The lines of a file that are not empty. UserError if there is none."""
    lines = [line for line in paths.text(name, name=flag).split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{flag}={name} has no text: give one or more, a line each")
    return lines


@dataclass(frozen=True)
class Asked:
    """What an action is given."""

    flags: argparse.Namespace
    source: "Saved"
    coder: "Coder"
    files: dict[str, list[str]]

    @property
    def texts(self) -> list[str]:
        """Those of the command line, or of --file."""
        return self.flags.texts or self.files["file"]

    @property
    def among(self) -> list[str]:
        """The texts of --file, or of the run's held-out split; at most --rows of them, spread evenly."""
        from lm.evaluation.latents import held_out

        found = self.files["file"] if "file" in self.files else held_out(self.source, self.coder)
        return _spread(found, self.flags.rows)


def _spread(texts: list[str], most: int) -> list[str]:
    """At most so many of the texts, spread evenly over them."""
    return texts if len(texts) <= most else [texts[i * len(texts) // most] for i in range(most)]


# -------------------------------------------------------------------------------------------------------------- actions


def _reconstruct(a: Asked) -> int:
    texts, coder = a.texts, a.coder
    written, read = coder.write(coder.encode(texts)), [coder.read(text) for text in texts]
    right = total = 0
    for before, after in zip(coder.ids(read), coder.ids(written), strict=True):
        right += sum(x == y for x, y in zip(before, after, strict=False))
        total += len(before)
    for before, after in zip(read, written, strict=True):
        print(f"{'=' if before == after else ' '} {_short(before)}\n  {_short(after)}")
    copies = sum(before == after for before, after in zip(read, written, strict=True))
    print(f"{copies} of {len(texts)} are exact copies; {right / max(total, 1):.1%} of the tokens are right in their places")
    return 0


def _interpolate(a: Asked) -> int:
    from lm.evaluation.latents import between

    first, last = a.coder.encode(a.texts)
    steps = max(2, a.flags.steps)
    for i, text in enumerate(a.coder.write(between(first, last, steps))):
        print(f"{i / (steps - 1):.2f}  {_short(text)}")
    return 0


def _paraphrase(a: Asked) -> int:
    from lm.config import Sampling

    flags, coder = a.flags, a.coder
    copies = total = 0
    for text in a.texts:
        draws = [text] * flags.samples
        how = [Sampling(temperature=flags.temperature, seed=(flags.seed + i) % 2**32) for i in range(flags.samples)]
        written = coder.write(coder.drawn(draws, seed=flags.seed, scale=flags.scale), sampling=how)
        own = coder.read(text)
        print(_short(own))
        for sample in written:
            print(f"{'=' if sample == own else ' '} {_short(sample)}")
        copies, total = copies + sum(sample == own for sample in written), total + len(written)
    print(f"{copies} of {total} samples are exact copies ({copies / total:.1%})")
    return 0


def _neighbours(a: Asked) -> int:
    from lm.generation.vectors import cosines

    among = a.among
    flat = lambda texts: a.coder.encode(texts).reshape(len(texts), -1)
    for text, near in zip(a.texts, cosines(flat(a.texts), flat(among)), strict=True):
        print(_short(text))
        for i in sorted(range(len(among)), key=lambda i, near=near: (-near[i], i))[: a.flags.top]:
            print(f"  {near[i]:.4f}  {_short(among[i])}")
    return 0


def _anomaly(a: Asked) -> int:
    from lm.evaluation.findings import auroc

    groups = {False: a.among} | ({True: _spread(a.files["other"], a.flags.rows)} if "other" in a.files else {})
    found = {other: a.coder.scores(texts).per_token for other, texts in groups.items()}
    if a.flags.jsonl:
        for other, texts in groups.items():
            for text, nats in zip(texts, found[other], strict=True):
                print(json.dumps({"nats": round(float(nats), 6), "other": other, "text": text}, ensure_ascii=False))
    else:
        rows = sorted(((nats, other, text) for other in groups for nats, text in zip(found[other], groups[other], strict=True)))
        for nats, other, text in rows[::-1][: a.flags.top]:
            print(f"{nats:8.4f}  {'other' if other else '     '}  {_short(text)}")
    means = "  ".join(f"{'other ' if other else ''}mean {float(values.mean()):.4f}" for other, values in found.items())
    said = f"nats a token: {means}"
    if True in found:
        said += f"; AUROC {auroc(found[True], found[False]):.4f}"
    print(said, file=sys.stderr if a.flags.jsonl else sys.stdout)
    return 0


def _map(a: Asked) -> int:
    from lm.evaluation.latents import plane

    groups = {"file": a.among} | ({"other": _spread(a.files["other"], a.flags.rows)} if "other" in a.files else {})
    texts = [text for some in groups.values() for text in some]
    names = [name for name, some in groups.items() for _ in some]
    if len(texts) < 3:
        raise UserError(f"a map of {len(texts)} texts shows nothing: give three or more")
    places, share = plane(a.coder.encode(texts))
    with atomic.new_folder(paths.local(a.flags.out, name="--out")) as folder:
        _draw(places, names, texts, share, folder / "map.png")
        points = [dict(text=t, of=n, x=float(x), y=float(y)) for t, n, (x, y) in zip(texts, names, places, strict=True)]
        atomic.write_json(folder / "map.json", {"model": str(a.source.folder), "variance": share, "points": points})
    print(f"{len(texts):,} texts, {share:.0%} of the variance in two dimensions: {a.flags.out}")
    return 0


ACTIONS: dict[str, Any] = {
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "paraphrase": _paraphrase,
    "neighbours": _neighbours,
    "anomaly": _anomaly,
    "map": _map,
}


# ---------------------------------------------------------------------------------------------------------------- shown


def _draw(places: "np.ndarray", names: list[str], texts: list[str], share: float, path: Any) -> None:
    """Writes a picture of the texts' places, float [N, 2]. UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"the map needs matplotlib ({error}): pip install -e '.[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(10, 8), dpi=100, layout="constrained")
    for name, color in (("file", "#2a6f4e"), ("other", "#b5532a")):
        own = [i for i, of in enumerate(names) if of == name]
        if own:
            ax.scatter(*places[own].T, s=18, color=color, label=f"--{name}")
    for i in range(0, len(texts), max(1, -(-len(texts) // LABELS))):
        ax.annotate(_short(texts[i], 24).replace("$", r"\$"), places[i], fontsize=7, color="#444444")
    ax.set_title(f"Latents by principal components, {share:.0%} of the variance", fontsize=10)
    ax.set(xticks=[], yticks=[])
    if len(set(names)) > 1:
        ax.legend()
    figure.savefig(path)
    pyplot.close(figure)


def _short(text: str, most: int = SHOWN) -> str:
    """The beginning of a text, in one line of printable characters."""
    line = printable(" ".join(text[: 10 * most].split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


HELP = {
    "reconstruct": "writes texts again",
    "interpolate": "writes what lies between two texts",
    "paraphrase": "draws what is near a text",
    "neighbours": "finds the texts that are nearest",
    "anomaly": "scores how unlike the training texts are",
    "map": "draws texts in two dimensions",
}


def parser() -> cli.Parser:
    p = cli.parser("lm.latent", __doc__)
    actions = p.add_subparsers(dest="command", required=True, metavar="ACTION")
    for name in ACTIONS:
        action: Any = actions.add_parser(name, help=HELP[name], description=HELP[name])
        if name not in ("anomaly", "map"):
            action.add_argument("texts", nargs="*", metavar="TEXT", help="texts")
        action.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="a run with a bottleneck")
        if name != "interpolate":
            action.add_argument("--file", help="a file with a text a line")
        if name in ("anomaly", "map"):
            action.add_argument("--other", help="a file with texts of another source, one a line")
        if name in ("anomaly", "map", "neighbours"):
            action.add_argument("--rows", hint=Count, default=1000, help="texts that are read of each source, at most")
        if name in ("anomaly", "neighbours"):
            action.add_argument("--top", hint=Count, default=5, help="how many are shown")
        _add_own(action, name)
        p.hints |= action.hints
    return p


def _add_own(action: Any, name: str) -> None:
    """Adds the flags that one action alone has."""
    if name == "interpolate":
        action.add_argument("--steps", hint=Count, default=5, help="texts, both ends included")
    elif name == "paraphrase":
        action.add_argument("--samples", hint=Count, default=4, help="of each text")
        action.add_argument("--scale", hint=NonNegative, default=1.0, help="of the spread of the vectors")
        action.add_argument("--temperature", hint=NonNegative, default=0.7, help="of the words")
        action.add_argument("--seed", hint=Seed, default=0, help="of all draws")
    elif name == "anomaly":
        action.add_argument("--jsonl", action="store_true", help="write a line of JSON for each text")
    elif name == "map":
        action.add_argument("--out", metavar="FOLDER", required=True, help="a new folder for map.png and map.json")


if __name__ == "__main__":
    cli.enter(main)

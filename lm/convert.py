"""Converts weights from and to Hugging Face, and from GGUF files.

  python -m lm.convert from_hf SRC DST     a folder with config.json and
                                           weights, or a .gguf file
                                           -> model.json, params/ (Orbax), hf/
  python -m lm.convert to_hf SRC DST       a converted model, or a run's workdir
                                           -> config.json, safetensors
                                           with tokenizer and a model card
  python -m lm.convert push SRC DST --repository=NAMESPACE/NAME
                                           the same for the hub: says how it
                                           is uploaded, and sends nothing
  python -m lm.convert to_gguf SRC DST     one of LLaMA's kind -> a .gguf file
  python -m lm.convert merge SRC DST       a run with adapters -> one model
  python -m lm.convert from_peft SRC DST --base=BASE
                                           an adapter of the library peft, in
                                           its model -> one model
  python -m lm.convert to_peft SRC DST     a run's adapters -> files of peft
  python -m lm.convert average SRC... DST  one model of several runs or
                                           converted models of one shape
  python -m lm.convert families            lists the known model types

Tensors are read and written one by one, so memory stays near the model's size. Tokenizer files are copied.
"""

import argparse

from lm import cli, startup
from lm.errors import UserError, add_also

__path__: list[str] = []  # imports of submodules that it had as a package reach `lm.moved`

HELP = {
    "from_hf": "imports a Hugging Face checkpoint, or a GGUF file",
    "to_hf": "exports a converted model or a run",
    "push": "prepares a folder for the hub, and sends nothing",
    "to_gguf": "exports a model like LLaMA as a GGUF file",
    "merge": "adds a run's adapters to their base",
    "from_peft": "adds an adapter of peft to its base",
    "to_peft": "exports a run's adapters for peft",
    "families": "lists the known model types",
    "average": "averages models, or adds their differences from a base",
}

AVERAGE = """Writes one model of several.

  python -m lm.convert average A B C soup         their mean (model soup)
  python -m lm.convert average A B mix --weights=3,1
                                                  three quarters of A
  python -m lm.convert average A new --base=BASE --weights=0.5
                                                  half way from BASE to A (task
                                                  vector); -1 takes it away
  python -m lm.convert average RUN mean --last=3  its last checkpoints
"""


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    try:
        startup.after_jax()  # without `before_jax`, which makes the process keep freed memory
        _do(flags)
    except MemoryError as error:
        cure = "convert on a machine with twice the size of the weights"
        raise UserError(f"not enough memory{f' ({error})' if str(error) else ''}; {cure}") from None
    except UserError:
        raise
    except BaseException as error:  # such as a full disk or a signal
        add_also(error, "nothing was written")
        raise
    return 0


def _do(flags: argparse.Namespace) -> None:
    from lm.conversion import adapters, families, folders, gguf_writer, merge, push

    if flags.command == "families":
        print("\n".join(sorted(families.FAMILIES)))
    elif flags.command == "merge":
        print(adapters.merge(flags.source, flags.target, base=flags.base))
    elif flags.command in ("from_peft", "to_peft"):
        write = adapters.from_peft if flags.command == "from_peft" else adapters.to_peft
        print(write(flags.source, flags.target, base=flags.base, family=flags.family))
    elif flags.command == "average":
        options = {name: getattr(flags, name) for name in ("weights", "base", "last")}
        print(merge.average(flags.target, flags.sources, **options))
    elif flags.command == "from_hf":
        options = {name: getattr(flags, name) for name in ("dtype", "scan", "allow_pickle", "drop")}
        print(folders.from_hf(flags.source, flags.target, **options))
    elif flags.command == "to_gguf":
        print(gguf_writer.to_gguf(flags.source, flags.target))
    elif flags.command == "push":
        options = {name: getattr(flags, name) for name in ("repository", "licence", "family", "shard_gb")}
        print(push.push(flags.source, flags.target, **options))
    else:
        print(folders.to_hf(flags.source, flags.target, family=flags.family, shard_gb=flags.shard_gb))


def numbers(text: str) -> list[float]:
    """Numbers between commas; ValueError, which argparse reports, for anything else."""
    return [float(part) for part in text.split(",")]


def parser() -> cli.Parser:
    p = cli.parser("lm.convert", __doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("from_hf", "to_hf", "push"):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name])
        given = "a Hugging Face folder, or a GGUF file" if name == "from_hf" else "a run's workdir, or a converted model"
        command.add_argument("source", metavar="SRC", help=given)
        command.add_argument("target", metavar="DST", help="a new folder")
        if name == "from_hf":
            command.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as saved, float16 as float32")
            command.add_argument(
                "--scan", action=argparse.BooleanOptionalAction, help="stack the layers; default: if 8 or more"
            )
            command.add_argument("--allow_pickle", action="store_true", help="read pytorch_model*.bin in a process of its own")
            command.add_argument("--drop", metavar="REGEX", help="tensors to leave out, such as 'cls.seq_relationship.*'")
        else:
            command.add_argument("--family", help="model_type to write; default: the first that can express the model")
            command.add_argument("--shard_gb", type=float, default=5.0, help="largest file, GB (default 5)")
        if name == "push":
            command.add_argument("--repository", metavar="NAMESPACE/NAME", required=True, help="its name on the hub")
            command.add_argument("--license", dest="licence", metavar="NAME", help="for the card, such as apache-2.0")
    command = commands.add_parser("average", help=HELP["average"], description=AVERAGE)
    command.add_argument("sources", metavar="SRC", nargs="+", help="runs or converted models, of one shape")
    command.add_argument("target", metavar="DST", help="a new folder, which every command opens")
    command.add_argument("--weights", type=numbers, metavar="W,W", help="of each SRC (default: all 1)")
    command.add_argument("--base", metavar="FOLDER", help="add to this model the weighted differences of each SRC from it")
    command.add_argument("--last", type=int, metavar="N", help="average the last N checkpoints of the run SRC")
    command = commands.add_parser("to_gguf", help=HELP["to_gguf"], description=HELP["to_gguf"])
    command.add_argument("source", metavar="SRC", help="a run's workdir, or a converted model")
    command.add_argument("target", metavar="DST", help="a new file, NAME.gguf")
    for name in ("merge", "from_peft", "to_peft"):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name])
        given = "a folder of peft's" if name == "from_peft" else "the workdir of a run with adapters"
        command.add_argument("source", metavar="SRC", help=given)
        command.add_argument("target", metavar="DST", help="a new folder")
        about = "the model that it is of" if name == "from_peft" else "the model under the adapters, if it has moved"
        command.add_argument("--base", metavar="FOLDER", required=name == "from_peft", help=about)
        if name != "merge":
            command.add_argument("--family", help="model_type whose names it has; default: that of the base")
    commands.add_parser("families", help=HELP["families"], description=HELP["families"])
    return p


if __name__ == "__main__":
    cli.enter(main)

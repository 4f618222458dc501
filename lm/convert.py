"""Converts weights from and to Hugging Face, and from GGUF files.

  python -m lm.convert from_hf SRC DST     a folder with config.json and
                                           weights, or a .gguf file
                                           -> model.json, params/ (Orbax), hf/
  python -m lm.convert to_hf SRC DST       a converted model, or a run's workdir
                                           -> config.json, safetensors
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
    "families": "lists the known model types",
}


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
    from lm.conversion import families, folders

    if flags.command == "families":
        print("\n".join(sorted(families.FAMILIES)))
    elif flags.command == "from_hf":
        options = {name: getattr(flags, name) for name in ("dtype", "scan", "allow_pickle", "drop")}
        print(folders.from_hf(flags.source, flags.target, **options))
    else:
        print(folders.to_hf(flags.source, flags.target, family=flags.family, shard_gb=flags.shard_gb))


def parser() -> cli.Parser:
    p = cli.parser("lm.convert", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    for name in ("from_hf", "to_hf"):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name])
        command.add_argument("source", metavar="SRC")
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
    commands.add_parser("families", help=HELP["families"], description=HELP["families"])
    return p


if __name__ == "__main__":
    cli.enter(main)

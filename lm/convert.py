"""Weights to and from Hugging Face.

    python -m lm.convert from_hf SRC DST     a folder with config.json and safetensors -> model.json, params/ (Orbax), hf/
    python -m lm.convert to_hf SRC DST       such a folder, or the workdir of a run -> config.json, safetensors
    python -m lm.convert families            the model types that are known

Tensors are read and written one by one: memory stays near the model's own size. The tokenizer's files are carried along.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

from lm import atomic, cli, paths, startup, untrusted
from lm.errors import UserError, add_also, printable

KEPT = ("architectures", "id2label", "label2id", "problem_type")  # of a classifier: of what it is, what its outputs mean


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lm.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("from_hf", "import a Hugging Face checkpoint"), ("to_hf", "export a model or a run")):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("source", type=Path)
        command.add_argument("target")
        if name == "from_hf":
            command.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as they are, float16 as float32")
            command.add_argument("--scan", action=argparse.BooleanOptionalAction, help="stack the layers; default: from 8 on")
            command.add_argument("--allow_pickle", action="store_true", help="read pytorch_model*.bin in a process of its own")
            command.add_argument("--drop", metavar="REGEX", help="tensors to leave out, such as 'cls.seq_relationship.*'")
        else:
            command.add_argument("--family", help="model_type to write; default: the first that can say the model")
            command.add_argument("--shard_gb", type=float, default=5.0, help="largest file, GB (default 5)")
    commands.add_parser("families", help="list the known model types")
    flags = parser.parse_args(argv)
    try:
        startup.after_jax()  # and not `before_jax`: nothing is computed here, and freed memory is to go back
        if flags.command == "families":
            from lm.conversion.families import FAMILIES

            print("\n".join(sorted(FAMILIES)))
        else:
            flags.source = flags.source.expanduser()
            flags.target = paths.local(flags.target, name="the target")
            (_from_hf if flags.command == "from_hf" else _to_hf)(flags)
    except MemoryError as error:
        cure = "convert on a machine that has twice the size of the weights"
        raise UserError(f"not enough memory{f' ({error})' if str(error) else ''}; {cure}") from None
    except UserError:
        raise
    except BaseException as error:  # such as a full disk or a signal
        add_also(error, "nothing was written")
        raise
    return 0


def _from_hf(flags: argparse.Namespace) -> None:
    from lm import checkpoint, saved
    from lm.conversion import files, read
    from lm.data import tokenizer_check

    start = time.perf_counter()
    with atomic.new_folder(flags.target) as folder:
        kept = folder / "hf"
        kept.mkdir()
        carried = files.carry(flags.source, kept)
        if tokenizer := next((name for name in saved.TOKENIZERS if name in carried), None):
            cure = "take it out of the folder to convert the weights alone"
            tokenizer_check.check((kept / tokenizer).read_bytes(), name=str(flags.source / tokenizer), cure=cure)
        with _bar("reading") as progress:
            imported = read(
                flags.source,
                dtype=flags.dtype,
                scan=flags.scan,
                allow_pickle=flags.allow_pickle,
                drop=flags.drop,
                scratch=folder,
                progress=progress,
            )
        (kept / "config.json").write_bytes(untrusted.inside(flags.source, "config.json").read_bytes())
        checkpoint.save_params(folder, imported.model, imported.params)
    for note in imported.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    _say(imported.params, f"{imported.family}, {imported.model.param_dtype}", carried, flags.target, start)


def _to_hf(flags: argparse.Namespace) -> None:
    from lm import saved
    from lm.conversion import check_family, files, write

    start = time.perf_counter()
    shard = flags.shard_gb * 1e9
    if not 1 <= shard < float("inf"):
        raise UserError(f"--shard_gb={flags.shard_gb} must be a finite number above 0")
    if flags.family is not None:
        check_family(flags.family, "--family")
    kept = flags.source / "hf"
    with atomic.new_folder(flags.target) as folder:
        source = saved.open(flags.source, name="source")
        model, params = source.model, source.params()
        if kept.exists():
            saved.check_files(source.folder, "hf")
        also = untrusted.read_json(kept, "config.json") if untrusted.has(kept, "config.json") else {}
        if (family := flags.family or also.get("model_type")) is not None:
            check_family(family, f"model_type of {kept / 'config.json'}")
        with _bar("writing") as progress:
            also = {k: v for k, v in also.items() if k.endswith("token_id") or k in KEPT}
            name = write(model, params, folder, family=family, also=also, shard_bytes=int(shard), progress=progress)
        carried = files.carry(kept, folder)
        if not kept.exists() and (proto := source.tokenizer_bytes()):
            carried.append("tokenizer.json" if proto.lstrip()[:1] == b"{" else "tokenizer.model")
            (folder / carried[-1]).write_bytes(proto)
    _say(params, name, carried, flags.target, start)


def _bar(about: str):
    """A progress bar in bytes: a context that gives `progress(done, total)`."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    @contextmanager
    def shown():
        columns = (TextColumn(about), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(about, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    return shown()


def _say(params, about: str, carried: list[str], target: Path, start: float) -> None:
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    files = f"; with {', '.join(carried)}" if carried else ""
    print(
        f"{target}: {about}, {count:,} parameters, {size / 1e9:.2f} GB{files}; "
        f"{time.perf_counter() - start:.1f} s, peak memory {peak / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    cli.leave(main())

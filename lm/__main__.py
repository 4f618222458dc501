"""All commands behind one name: `lm VERB ...` is `python -m lm.VERB ...`.

  lm train --config=quickstart --workdir=runs/quickstart
  lm chat --from=runs/quickstart
  lm VERB --help                  what a verb does, and its flags
  eval "$(lm completion bash)"    the shell completes verbs, flags, keys and
                                  values of a config; also zsh and fish

Verbs:
"""

import importlib
import sys

import lm
from lm import cli, completion
from lm.completion import VERBS
from lm.errors import UserError, nearest


def main(argv: list[str] | None = None) -> None:
    """Ends the process with the exit code of the verb."""
    words = sys.argv[1:] if argv is None else argv
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        width = max(map(len, VERBS)) + 2
        print(__doc__ + "\n".join(f"  {name:<{width}}{text}" for name, text in VERBS.items()))
    elif verb == "--version":
        print(f"lm {lm.__version__}")
    elif verb in ("completion", "complete"):
        cli.enter(lambda: completion.main([verb, *words[1:]]))
    elif verb not in VERBS:
        cli.enter(cli.command(lambda _: _unknown(verb)))
    else:
        module = importlib.import_module(f"lm.{verb}")
        sys.argv = [f"lm.{verb}", *words[1:]]
        cli.enter(module.main, hosts=verb == "train")


def _unknown(verb: str) -> int:
    raise UserError(f"lm has no verb '{verb}'{nearest(verb, VERBS)}")


if __name__ == "__main__":
    main()

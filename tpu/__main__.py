"""Creates a TPU pod, trains on it and deletes it; see tpu/README.md.

  python -m tpu babysit my-pod --config=configs/pod.py:llama2_7b_v5e --zone=Z
  python -m tpu create my-pod --topology=v5e:16x16 --slices=2 --dry_run

  create    requests the machines and waits for them
  setup     installs the commit and its packages
  launch    starts `python -m lm.train` on all hosts
  logs      shows the log of one host, or of all
  status    shows the state of machines and run
  kill      stops the run on all hosts; it saves
  delete    deletes the machines; asks first
  babysit   all of these until the run is done
  profile   copies traces from the workdir
  flags     prints XLA's flags; NAME is a generation

The pod is --topology=v5e:16x16 [--slices=N], or the `pod` section of --config. Arguments after `--` go to lm.train.
With --dry_run the commands are printed and nothing runs.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable

from lm import cli
from lm.config.ranges import Count, NonNegative
from lm.errors import UserError, add_also
from tpu import actions, remote, topologies
from tpu.babysit import Actions, babysit
from tpu.flags import AVOID, flags_for, init_args
from tpu.gcloud import Gcloud
from tpu.machines import APIS, Machines, Wanted, machines

Say = Callable[[str], None]
ACTIONS = ("create", "setup", "launch", "logs", "status", "kill", "delete", "babysit", "profile", "flags")
# The actions that take a flag; --help of an action leaves out the others.
ON_A_POD = " ".join(ACTIONS[:8])
TAKEN = {
    "config": ON_A_POD,
    "topology": ON_A_POD,
    "slices": f"{ON_A_POD} flags",
    "zone": ON_A_POD,
    "project": ON_A_POD,
    "api": ON_A_POD,
    "spot": "create babysit",
    "flex_start": "create babysit",
    "runtime_version": "create babysit",
    "create_flags": "create babysit",
    "ssh_flags": "setup launch logs status kill babysit",
    "prepare": "setup babysit",
    "workdir": "launch babysit profile",
    "libtpu_args": "launch babysit",
    "host": "logs",
    "lines": "logs",
    "follow": "logs",
    "wait": "kill babysit",
    "interval": "create babysit",
    "yes": "delete",
    "out": "profile",
}


def parser(action: str | None = None) -> cli.Parser:
    """The parser of all actions, with the --help of one of them if it is given."""
    p = cli.parser("tpu", __doc__, config=False)
    p.add_argument("action", metavar="ACTION", choices=ACTIONS, help="one of those above")
    p.add_argument("name", help="of the pod; it is part of the names of its hosts")
    p.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
    pod = p.add_argument_group("the pod")
    pod.add_argument("--topology", help="of a slice: v5e:16x16, or v5litepod-256")
    pod.add_argument("--slices", type=int, help="joined by the data-centre network")
    pod.add_argument("--zone", help="as gcloud's; without it, gcloud's default")
    pod.add_argument("--project", help="the same")
    pod.add_argument("--api", choices=sorted(APIS), help="queued up to v6e, compute for TPU7x")
    pod.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    pod.add_argument("--flex_start", metavar="DURATION", help="wait for a place and have it for so long, at most 7d")
    pod.add_argument("--runtime_version", help="or family of the image; default by generation")
    pod.add_argument("--create_flags", default="", help="more flags of gcloud where hosts are made, space-separated")
    pod.add_argument("--ssh_flags", default="", help="more flags of gcloud where hosts are reached: --tunnel-through-iap")
    run = p.add_argument_group("the run")
    run.add_argument("--prepare", default="", help="setup: a command for the shell of each host, first; it may mount a share")
    run.add_argument("--workdir", help="gs://BUCKET/RUN, or /MOUNT/RUN of a share that all hosts have mounted")
    run.add_argument("--libtpu_args", help="instead of the flags of the generation")
    run.add_argument("--host", default="0", help="logs: a number, or 'all'")
    p.add_argument("--lines", hint=Count, default=40, help="logs: how many")
    run.add_argument("--follow", action="store_true", help="logs: and what comes")
    p.add_argument("--wait", hint=Count, default=600, help="kill: seconds that a host may take to save")
    p.add_argument("--interval", hint=NonNegative, default=60, help="create, babysit: seconds between looks")
    run.add_argument("--yes", action="store_true", help="delete: do not ask")
    run.add_argument("--out", default=".", help="profile: where to")
    if action is not None:
        line = next(line.strip() for line in __doc__.splitlines() if line.startswith(f"  {action} "))
        p.description = f"{line}\n\nAll actions: python -m tpu --help"
        for flag in p._actions:
            name = "config" if "--config.KEY" in flag.option_strings else flag.dest
            if action not in TAKEN.get(name, action).split():
                flag.help = argparse.SUPPRESS
    return p


@cli.command
def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    flags = parser(next((word for word in words[:cut] if word in ACTIONS), None)).parse(words[:cut])
    gcloud = Gcloud(flags.dry_run)
    say = _silent if flags.dry_run else _say
    if flags.action == "flags":
        _print_flags(flags.name, flags.slices or 1)
    elif flags.action == "profile":
        actions.profile(gcloud, _needed(flags.workdir, "workdir", "gs://BUCKET/RUN"), flags.out, say)
    else:
        pod = machines(_wanted(flags), flags.api, gcloud)
        try:
            _act(flags, pod, words[cut + 1 :], say)
        except KeyboardInterrupt as interruption:
            if flags.action in ("create", "babysit"):
                add_also(interruption, actions.hint(pod))
            raise
    return 0


def _act(flags: argparse.Namespace, pod: Machines, more: list[str], say: Say) -> None:
    def sleep() -> None:
        time.sleep(flags.interval)

    def start() -> tuple[list[str], dict[str, str]]:
        config = _needed(flags.config, "config", "configs/quickstart.py")
        workdir = _needed(flags.workdir, "workdir", "gs://BUCKET/RUN")
        words = actions.command(config, workdir, flags.overrides, more, actions.ROOT)
        return words, actions.environment(pod, workdir, flags.libtpu_args)

    if flags.action == "create":
        actions.create(pod, sleep, say)
    elif flags.action == "setup":
        with actions.bundle(actions.ROOT, dry_run=flags.dry_run) as file:
            actions.setup(pod, file, flags.prepare, say)
    elif flags.action == "launch":
        actions.launch(pod, *start(), say)
    elif flags.action == "logs":
        actions.logs(pod, flags.host, flags.lines, follow=flags.follow)
    elif flags.action == "status":
        actions.status(pod, say)
    elif flags.action == "kill":
        actions.kill(pod, flags.wait, say)
    elif flags.action == "delete":
        actions.delete(pod, yes=flags.yes, say=say)
    else:
        run = start()
        commit, mark = actions.commit(actions.ROOT), remote.run_id(*run)
        with actions.bundle(actions.ROOT, dry_run=flags.dry_run) as file:  # one commit, however long it takes
            do = Actions(
                state=pod.state,
                create=pod.create,
                delete=pod.delete,
                setup=lambda: actions.setup(pod, file, flags.prepare, say),
                launch=lambda: actions.launch(pod, *run, say),
                look=lambda: remote.of_run(actions.look(pod), commit, mark),
                stop=lambda: actions.kill(pod, flags.wait, say, mark=False),
            )
            if flags.dry_run:  # a round from nothing
                for step in (do.state, do.create, do.setup, do.launch, do.look):
                    step()
                return
            babysit(do, pod.wanted.topology.hosts * pod.wanted.slices, sleep=sleep, say=say)
        say(f"the run is done; the machines still cost: python -m tpu delete {flags.name} ...")


def _wanted(flags: argparse.Namespace) -> Wanted:
    topology, slices = flags.topology, flags.slices
    if topology is None:
        if flags.config is None:
            raise UserError("which pod? give --topology=v5e:16x16, or --config=F with a pod section")
        pod = cli.load(flags).pod
        if pod is None:
            raise UserError(f"{flags.config} has no pod section; give --topology=v5e:16x16")
        topology, slices = pod.topology, slices or pod.slices
    if flags.spot and flags.flex_start:
        raise UserError("--spot and --flex_start exclude each other")
    slices = 1 if slices is None else slices
    if slices < 1:
        raise UserError(f"--slices={slices} is too small; give 1 or more")
    return Wanted(
        name=flags.name,
        topology=topologies.parse(topology),
        slices=slices,
        zone=flags.zone,
        project=flags.project,
        spot=flags.spot,
        flex_start=flags.flex_start,
        runtime_version=flags.runtime_version,
        create_flags=tuple(shlex.split(flags.create_flags)),
        ssh_flags=tuple(shlex.split(flags.ssh_flags)),
    )


def _needed(value: str | None, name: str, example: str) -> str:
    if value is None:
        raise UserError(f"--{name} is missing, such as --{name}={example}")
    return value


def _print_flags(generation: str, slices: int) -> None:
    if generation not in topologies.CHIPS:
        raise UserError(f"no generation '{generation}'; known: {', '.join(topologies.CHIPS)}")
    print(init_args(generation, slices))  # stdout can be used as LIBTPU_INIT_ARGS; explanations go to stderr
    for flag in flags_for(generation, slices):
        print(f"{flag}\n    {flag.why} [{flag.source}]", file=sys.stderr)
    for name, why in AVOID.items():
        print(f"not --{name}\n    {why}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    """Ignores the messages of a dry run, in which nothing happens."""


if __name__ == "__main__":
    cli.enter(main)

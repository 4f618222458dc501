"""The actions of `python -m tpu`, as functions of a pod's machines. No jax."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from lm.errors import UserError
from tpu import remote
from tpu.flags import init_args
from tpu.gcloud import Gcloud
from tpu.machines import Machines, Queued, State

ROOT = Path(__file__).parents[1]


def create(pod: Machines, sleep: Callable[[], None], say: Callable[[str], None]) -> None:
    """Requests the pod and waits until its hosts are ready. Raises UserError if it fails."""
    pod.create()
    before = None
    while (state := pod.state()).kind != "ready":
        if state.kind in ("gone", "absent"):
            raise UserError(f"'{pod.wanted.name}' cannot be created: {state.detail}; delete it before the next attempt")
        if state != before:
            say(f"waiting: {state.detail}")
        before = state
        sleep()
    say(f"'{pod.wanted.name}' is ready: {_size(pod)}")


def _size(pod: Machines) -> str:
    t, slices = pod.wanted.topology, pod.wanted.slices
    return f"{t.chips * slices} chips on {t.hosts * slices} hosts" + (f" in {slices} slices" if slices > 1 else "")


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {words[0]} failed in {root}: {done.stderr.strip()}")
    return done.stdout


def commit(root: Path) -> str:
    return git(root, "rev-parse", "HEAD").strip()


@contextmanager
def bundle(root: Path = ROOT, *, dry_run: bool = False):
    """A git bundle of the checked-out commit with its history, so that a run's manifest names the commit. Raises UserError if
    there are uncommitted changes."""
    if dry_run:
        print(shlex.join(["git", "bundle", "create", remote.BUNDLE, "HEAD"]))
        yield remote.BUNDLE
        return
    if changed := git(root, "status", "--porcelain").splitlines():
        raise UserError(
            f"{len(changed)} files differ from the commit, such as {changed[0][3:]}; hosts run a commit: commit them"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / remote.BUNDLE)
        git(root, "bundle", "create", "--quiet", file, "HEAD")
        yield file


def setup(pod: Machines, file: str, prepare: str, say: Callable[[str], None]) -> None:
    """Installs the bundle `file` and its packages on all hosts; takes minutes the first time."""
    pod.copy(file, remote.BUNDLE)
    say(pod.shell(remote.setup(prepare)).strip() or "set up")


def command(config: str, workdir: str, overrides: dict[str, str], more: list[str], root: Path = ROOT) -> list[str]:
    """The arguments of `python` on a host, with the config's path relative to the checkout. Raises UserError if it is
    outside."""
    name, colon, argument = config.partition(":")
    try:
        inside = Path(name).resolve().relative_to(root.resolve())
    except ValueError:
        raise UserError(f"config {name} is outside of {root}; hosts have only the checkout") from None
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return ["-m", "lm.train", f"--config={inside}{colon}{argument}", f"--workdir={workdir}", *flags, *more]


def environment(pod: Machines, workdir: str, libtpu_args: str | None) -> dict[str, str]:
    """Environment variables of a run: XLA's flags, a compilation cache that all hosts share, and platforms that make a host
    without its TPU stop instead of training on its CPU. Raises UserError if the hosts do not share `workdir`."""
    scheme, _, path = workdir.rpartition("://")
    root, _, inside = path.removeprefix("/").rpartition("/")
    if scheme not in ("", "gs") or (not scheme and not path.startswith("/")) or not root or not inside:
        raise UserError(
            f"--workdir={workdir}: all hosts must see it: a bucket or a mounted share; give gs://BUCKET/RUN or /MOUNT/RUN"
        )
    shared = f"gs://{root.partition('/')[0]}" if scheme else f"/{root}"
    args = init_args(pod.wanted.topology.generation, pod.wanted.slices) if libtpu_args is None else libtpu_args
    return {
        "JAX_PLATFORMS": "tpu,cpu",
        "JAX_COMPILATION_CACHE_DIR": f"{shared}/jax_cache",
        **({"LIBTPU_INIT_ARGS": args} if args else {}),
    }


def launch(pod: Machines, words: list[str], variables: dict[str, str], say: Callable[[str], None]) -> None:
    say(pod.shell(remote.launch(words, variables)).strip() or "launched")


def look(pod: Machines) -> list[remote.Host]:
    return remote.hosts(pod.shell(remote.STATUS))


def status(pod: Machines, say: Callable[[str], None]) -> State:
    state = pod.state()
    say(f"{pod.wanted.name}  {pod.wanted.topology} x {pod.wanted.slices}  {state.kind}: {state.detail}")
    if state.kind == "ready":
        for host in look(pod):
            say(str(host))
    return state


def kill(pod: Machines, wait: int, say: Callable[[str], None], *, mark: bool = True) -> None:
    """Stops the run on all hosts and waits up to `wait` seconds for it to save. Raises UserError if it is still running
    then."""
    seen = remote.hosts(pod.shell(remote.kill(wait, mark=mark)))
    for host in seen:
        say(str(host))
    if left := [host.name for host in seen if host.state == "running"]:
        raise UserError(f"after {wait} s the run still runs on {', '.join(left)}; look at its log, or delete the pod")


def logs(pod: Machines, host: str, lines: int, *, follow: bool) -> None:
    if host == "all":
        if follow:
            raise UserError("--follow follows one host; give --host=0")
        print(pod.shell(remote.logs(lines, named=True)), end="")
        return
    hosts = pod.wanted.topology.hosts * pod.wanted.slices
    if not host.isdecimal() or int(host) >= hosts:
        raise UserError(f"--host={host} is not one of 0 to {hosts - 1}, nor 'all'")
    pod.shell(remote.logs(lines, follow=follow), host=int(host), show=True)


def delete(pod: Machines, *, yes: bool, say: Callable[[str], None]) -> None:
    if not yes and not pod.gcloud.dry_run:
        if not sys.stdin.isatty():
            raise UserError("delete asks before it deletes; without a terminal give --yes")
        if input(f"Delete '{pod.wanted.name}', {_size(pod)}, and their disks? [y/N] ").strip().lower() != "y":
            say("nothing was deleted")
            return
    if pod.delete():
        say(f"'{pod.wanted.name}' is deleted")
    else:
        place = " ".join(pod.wanted.location) or "gcloud's own project and zone"
        say(f"there is no '{pod.wanted.name}' in {place}: nothing was deleted")


def profile(gcloud: Gcloud, workdir: str, out: str, say: Callable[[str], None]) -> None:
    """Copies the traces that `lm.train --profile=FIRST:COUNT` wrote from `workdir` to `out`."""
    gcloud("storage", "cp", f"{workdir.rstrip('/')}/profile", out, "--recursive")
    say(f"traces are in {out}/profile; look at them with `pip install xprof && xprof --logdir={out}/profile`")


def hint(pod: Machines) -> str:
    """What remains, and costs, when the user stops waiting for a pod."""
    remains = "the request stays in the queue" if isinstance(pod, Queued) else "what was created stays"
    return f"{remains} and costs money once the hosts exist: see `status`; `delete` withdraws it"

"""What runs on a host of a pod, as text for its shell (POSIX sh), and how its answers are read. No jax.

On a host all is under ~/lm: `code` (a clone of the commit), `venv`, `ready` (the commit that is installed), and of the run
`run/id` (what was launched), `run/launch.sh`, `run/log`, `run/pid` and `run/exit`. The exit code of a run is what launch.sh has
written to that file: an ssh that breaks off changes nothing of it.
"""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass, replace
from typing import Literal

from lm.errors import UserError

BUNDLE = "lm.bundle"  # a git bundle, in the home of a host
EXTRAS = "tpu,data,report"
PYTHON = "3.12"  # where the image has none from 3.11 on

# `alive` is true while the run's own process is: after a reboot another one may have its number.
_ALIVE = """alive() { kill -0 "$1" 2>/dev/null && grep -qs lm.train "/proc/$1/cmdline"; }
pid=$(cat run/pid 2>/dev/null)
"""


def setup(prepare: str = "") -> str:
    """The commit and its packages; `prepare` is the user's own, for a shell of its own, before them."""
    first = f'sh -c {shlex.quote(prepare)} || {{ code=$?; echo "lm: $(hostname): --prepare ended with $code" >&2; exit 1; }}\n'
    return f"""mkdir -p ~/lm && cd ~/lm || exit 1
{_ALIVE}
if [ -n "$pid" ] && alive "$pid"; then echo "lm: $(hostname) runs already; kill it first" >&2; exit 1; fi
rm -rf code ready
{first if prepare else ""}git clone --quiet ~/{BUNDLE} code || exit 1
if ! venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf venv
  if python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python3 -m venv venv || exit 1
  else
    [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh >setup.log 2>&1
    ~/.local/bin/uv venv --quiet --seed --python {PYTHON} venv || exit 1
  fi
fi
if ! venv/bin/python -m pip install --quiet --progress-bar off './code[{EXTRAS}]' >setup.log 2>&1; then
  echo "lm: $(hostname): pip install failed: $(tail -n 1 setup.log); see ~/lm/setup.log there" >&2; exit 1
fi
git -C code rev-parse HEAD >ready && echo "$(hostname) is set up"
"""


def run_id(command: list[str], environment: dict[str, str]) -> str:
    """By which a host knows what it was launched with."""
    return hashlib.sha256(json.dumps([command, environment]).encode()).hexdigest()[:16]


def launch(command: list[str], environment: dict[str, str]) -> str:
    """Starts it in the background, detached from the ssh that brings it; the log of another run makes room for its own."""
    mark = run_id(command, environment)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    starter = f"""cd ~/lm/code || exit 1
{exports}echo "lm: launched $(date -u +%Y-%m-%dT%H:%M:%SZ)" >>../run/log
../venv/bin/python {shlex.join(command)} >>../run/log 2>&1 &
echo $! >../run/pid
wait $!
echo $? >../run/exit.new && mv ../run/exit.new ../run/exit
"""
    return f"""cd ~/lm 2>/dev/null && [ -s ready ] || {{ echo "lm: $(hostname) is not set up" >&2; exit 1; }}
{_ALIVE}
if [ -n "$pid" ] && alive "$pid"; then echo "lm: $(hostname) runs already; kill it first" >&2; exit 1; fi
mkdir -p run && rm -f run/exit run/pid run/stopped
case "$(cat run/id 2>/dev/null)" in {mark}-*) ;; *) [ -e run/log ] && mv run/log run/log.before ;; esac
echo "{mark}-$(cat ready)" >run/id
printf %s {shlex.quote(starter)} >run/launch.sh
nohup setsid sh run/launch.sh </dev/null >/dev/null 2>>run/log &
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s run/pid ] && break; sleep 0.2; done
[ -s run/pid ] || {{ echo "lm: $(hostname) did not start; see ~/lm/run/log there" >&2; exit 1; }}
echo "$(hostname) started"
"""


_SAY = f"""say() {{
  if [ ! -s ready ]; then state=bare
  elif [ -s run/exit ]; then state=ended
  elif [ -z "$pid" ]; then state=idle
  elif alive "$pid"; then state=running
  else  # between its end and its exit code, or between its start and its name
    sleep 1; state=lost
    if [ -s run/exit ]; then state=ended; elif alive "$pid"; then state=running; fi
  fi
  [ -e run/stopped ] && stopped=stopped
  step=$(grep -o 'step [0-9][0-9]*' run/log 2>/dev/null | tail -n 1)
  last=$(tail -n 1 run/log 2>/dev/null | tr '\\t\\r' '  ' | cut -c1-200)
  printf 'lm-status\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\t%s\\n' \\
    "$(hostname)" "$state" "$(cat run/exit 2>/dev/null)" "$stopped" "${{step#step }}" \\
    "$(cat ready 2>/dev/null)" "$(cat run/id 2>/dev/null)" "$last"
}}
mkdir -p ~/lm && cd ~/lm || exit 1
{_ALIVE}"""

STATUS = _SAY + "say\n"


def kill(wait: int, *, mark: bool = True) -> str:
    """SIGTERM, so that the run saves, and up to `wait` seconds for its end; `mark` tells a babysitter not to go on."""
    return (
        _SAY
        + ("mkdir -p run && touch run/stopped\n" if mark else "")
        + f"""if [ -n "$pid" ] && [ ! -s run/exit ] && alive "$pid"; then
  kill -TERM "$pid"
  waited=0
  while [ ! -s run/exit ] && [ $waited -lt {10 * wait} ]; do sleep 0.1; waited=$((waited + 1)); done
fi
say
"""
    )


def logs(lines: int, *, follow: bool = False, named: bool = False) -> str:
    name = ' | sed "s/^/$(hostname): /"' if named else ""
    return f"tail -n {lines} {'-F ' if follow else ''}~/lm/run/log{name}"


@dataclass(frozen=True)
class Host:
    """What STATUS says of one. Bare: not set up. Idle: nothing was launched. Lost: it died without leaving an exit code."""

    name: str
    state: Literal["bare", "idle", "running", "ended", "lost"]
    code: int | None
    stopped: bool  # by our `kill`
    step: int | None  # the last that its log names
    last: str  # line of its log
    commit: str = ""  # that is installed
    run: str = ""  # what was launched: `run_id`-commit

    def __str__(self) -> str:
        of = {"bare": "not set up", "idle": "not launched", "lost": "died without an exit code (rebooted?)"}
        said = f"ended with {self.code}" if self.state == "ended" else of.get(self.state, self.state)
        return f"{self.name}  {said}" + (" (killed)" if self.stopped else "") + (f"  | {self.last}" if self.last else "")


def hosts(stdout: str) -> list[Host]:
    """The hosts that answered, by name; other lines are gcloud's own."""
    found = []
    for line in stdout.splitlines():
        if line.startswith("lm-status\t"):
            _, name, state, code, stopped, step, commit, run, last = line.split("\t", 8)
            number = [int(n) if re.fullmatch(r"\d+", n) else None for n in (code, step)]
            found.append(Host(name, state, number[0], bool(stopped), number[1], last, commit, run))  # ty: ignore[invalid-argument-type]
    return sorted(found, key=lambda h: h.name)


def of_run(seen: list[Host], commit: str, run: str) -> list[Host]:
    """What hosts are to this run of this commit: with another commit a host is bare, after another run idle. UserError where
    one runs what it should not.
    """
    found = []
    for host in seen:
        strange = "commit" if host.commit != commit else "command" if host.run != f"{run}-{commit}" else None
        if strange and host.state == "running":
            raise UserError(f"{host.name} runs another {strange} than this one; `kill` it first, or babysit that one")
        if strange and host.state != "bare":
            state = "bare" if strange == "commit" else "idle"
            host = replace(host, state=state, code=None, stopped=False, step=None)
        found.append(host)
    return found

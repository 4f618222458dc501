"""The shell scripts (POSIX sh) that run on a pod's hosts, and the parser of their output. No jax.

Everything on a host is under ~/lm: `code` (a clone of the commit), `venv`, `ready` (the installed commit), and for the run
`run/id` (what was launched), `run/launch.sh`, `run/log`, `run/pid` and `run/exit`. launch.sh writes the run's exit code to
`run/exit`, so it does not depend on the ssh connection.
"""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass, replace
from typing import Literal

from lm.errors import UserError

BUNDLE = "lm.bundle"  # a git bundle, in the home directory of a host
EXTRAS = "tpu,data,report"
PYTHON = "3.12"  # installed if the image has none from 3.11 on

# `alive` also checks the command line, because after a reboot another process may have the pid.
_ALIVE = """alive() { kill -0 "$1" 2>/dev/null && grep -qs lm.train "/proc/$1/cmdline"; }
pid=$(cat run/pid 2>/dev/null)
"""


def setup(prepare: str = "") -> str:
    """A script that installs the commit and its packages. It first runs `prepare`, the user's command, in a separate shell."""
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
    """16 hex digits that identify a command and its environment."""
    return hashlib.sha256(json.dumps([command, environment]).encode()).hexdigest()[:16]


def launch(command: list[str], environment: dict[str, str]) -> str:
    """A script that starts the command in the background, detached from ssh. The log of another run is moved to log.before."""
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


_STATUS = f"""status() {{
  if [ ! -s ready ]; then state=bare
  elif [ -s run/exit ]; then state=ended
  elif [ -z "$pid" ]; then state=idle
  elif alive "$pid"; then state=running
  else  # it may just have ended and not written its exit code, or just have been started
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

STATUS = _STATUS + "status\n"


def kill(wait: int, *, mark: bool = True) -> str:
    """A script that sends SIGTERM, so that the run saves, and waits up to `wait` seconds for its end. `mark` leaves a file that
    tells a babysitter not to launch again."""
    return (
        _STATUS
        + ("mkdir -p run && touch run/stopped\n" if mark else "")
        + f"""if [ -n "$pid" ] && [ ! -s run/exit ] && alive "$pid"; then
  kill -TERM "$pid"
  waited=0
  while [ ! -s run/exit ] && [ $waited -lt {10 * wait} ]; do sleep 0.1; waited=$((waited + 1)); done
fi
status
"""
    )


def logs(lines: int, *, follow: bool = False, named: bool = False) -> str:
    """A script that prints the end of the log; `named` puts the host's name before each line."""
    name = ' | sed "s/^/$(hostname): /"' if named else ""
    return f"tail -n {lines} {'-F ' if follow else ''}~/lm/run/log{name}"


@dataclass(frozen=True)
class Host:
    """A host as STATUS reports it.

    state: "bare" is not set up, "idle" is set up without a launch, "lost" died without an exit code.
    """

    name: str
    state: Literal["bare", "idle", "running", "ended", "lost"]
    code: int | None
    stopped: bool  # by `kill`
    step: int | None  # the last one in its log
    last: str  # the last line of its log
    commit: str = ""  # installed
    run: str = ""  # what was launched: `run_id`-commit

    def __str__(self) -> str:
        of = {"bare": "not set up", "idle": "not launched", "lost": "died without an exit code (rebooted?)"}
        status = f"ended with {self.code}" if self.state == "ended" else of.get(self.state, self.state)
        return f"{self.name}  {status}" + (" (killed)" if self.stopped else "") + (f"  | {self.last}" if self.last else "")


def hosts(stdout: str) -> list[Host]:
    """Parses the output of STATUS on all hosts; lines of gcloud itself are skipped. Returns the hosts sorted by name."""
    found = []
    for line in stdout.splitlines():
        if line.startswith("lm-status\t"):
            _, name, state, code, stopped, step, commit, run, last = line.split("\t", 8)
            number = [int(n) if re.fullmatch(r"\d+", n) else None for n in (code, step)]
            found.append(Host(name, state, number[0], bool(stopped), number[1], last, commit, run))  # ty: ignore[invalid-argument-type]
    return sorted(found, key=lambda h: h.name)


def of_run(seen: list[Host], commit: str, run: str) -> list[Host]:
    """The hosts as seen by this run of this commit: one with another commit is bare, one that ran another command idle. Raises
    UserError if a host is running something else.
    """
    found = []
    for host in seen:
        other = "commit" if host.commit != commit else "command" if host.run != f"{run}-{commit}" else None
        if other and host.state == "running":
            raise UserError(f"{host.name} runs another {other}; `kill` it first, or babysit that one")
        if other and host.state != "bare":
            state = "bare" if other == "commit" else "idle"
            host = replace(host, state=state, code=None, stopped=False, step=None)
        found.append(host)
    return found

"""A fake `gcloud` for tests: records its argv, simulates pods under $FAKE, and runs the scripts that it gets over ssh on
"hosts".

$FAKE/calls.jsonl  the argv of each call
$FAKE/world.json   the pods, and the test's plan: `plan` (the states of each created pod, one per describe), `fail`
$FAKE/hosts/NAME   the home directory of a host

The tests start it about a hundred times, so it imports modules only where it needs them.
"""

import json
import os
import sys

FAKE = os.environ["FAKE"]
WORLD = f"{FAKE}/world.json"
HOSTS = f"{FAKE}/hosts"


def fail(text, code=1):
    print(text, file=sys.stderr)
    sys.exit(code)


def keep(world):
    with open(WORLD, "w") as file:
        json.dump(world, file)


def flag(argv, name, default=None):
    return next((word.partition("=")[2] for word in argv if word.startswith(f"--{name}=")), default)


def wipe(name):
    """Removes the hosts of a pod and kills what runs on them."""
    import shutil
    import signal

    for home in (f"{HOSTS}/{host}" for host in os.listdir(HOSTS) if host.startswith(name)):
        try:
            with open(f"{home}/lm/run/pid") as file:
                os.kill(int(file.read()), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # nothing runs on this host
        shutil.rmtree(home, ignore_errors=True)


def on(hosts, command):
    """Runs a script on all hosts concurrently; returns their stdouts and the first nonzero exit code."""
    import subprocess

    started = []
    for host in hosts:
        home = f"{HOSTS}/{host}"
        os.makedirs(home, exist_ok=True)
        env = {"HOME": home, "HOST": host, "PATH": f"{FAKE}/shims:/usr/bin:/bin", "FAKE": FAKE}
        env["GIT_TEMPLATE_DIR"] = ""  # makes a clone without sample hooks
        words = ["sh", "-c", command]
        started.append(subprocess.Popen(words, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    codes = []
    for process in started:
        out, err = process.communicate()
        sys.stdout.write(out)
        sys.stderr.write(err)
        codes.append(process.returncode)
    bad = [code for code in codes if code]
    if bad:
        fail(f"ERROR: (gcloud.ssh) exited with return code [{bad[0]}].", bad[0])


def copy(hosts, file, to):
    import shutil

    for host in hosts:
        os.makedirs(f"{HOSTS}/{host}", exist_ok=True)
        shutil.copy(file, f"{HOSTS}/{host}/{to}")


def next_state(world, name):
    """Moves a pod to its next planned state (the last one is repeated), and returns it."""
    states = world["pods"][name]["states"]
    state = states.pop(0) if len(states) > 1 else states[0]
    if state in ("SUSPENDED", "PREEMPTED", "TERMINATED"):
        wipe(name)
    return state


def queued(argv, world):
    verb, name = argv[3], argv[4] if argv[3] != "scp" else argv[5].partition(":")[0]
    if verb == "create":
        count = int(flag(argv, "node-count", "1"))
        nodes = [f"{flag(argv, 'node-prefix')}-{i}" for i in range(count)] if count > 1 else [flag(argv, "node-id")]
        world["pods"][name] = {"nodes": nodes, "states": world["plan"].pop(0) if world["plan"] else ["ACTIVE"]}
        return
    if name not in world["pods"]:
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: Resource '{name}' was not found")
    nodes = world["pods"][name]["nodes"]
    each = int(os.environ["FAKE_HOSTS"])
    picked = nodes if flag(argv, "node") == "all" else nodes[int(flag(argv, "node", "0")) :][:1]
    workers = range(each) if flag(argv, "worker") == "all" else [int(flag(argv, "worker", "0"))]
    hosts = [f"{node}-w{worker}" for node in picked for worker in workers]
    if verb == "describe":
        state = next_state(world, name)
        node = state if state == "PREEMPTED" else "READY"
        world["pods"][name]["node"] = node
        said = {"state": "ACTIVE" if state == "PREEMPTED" else state}
        print(json.dumps({"name": name, "state": said | {"failedData": {"error": {"message": "no room"}}}}))
    elif verb == "delete":
        wipe(name)
        del world["pods"][name]
    elif verb == "ssh":
        on(hosts, flag(argv, "command"))
    elif verb == "scp":
        copy(hosts, argv[4], argv[5].partition(":")[2])


def compute(argv, world):
    name = next(word for word in argv if "pod" in word and not word.startswith("-")).partition(":")[0]
    words = [word for word in argv if not word.startswith("-")]
    kind = " ".join(words[1:-1]) if words[1] not in ("ssh", "scp") else words[1]
    made = world.setdefault("made", [])
    if kind == "ssh":
        on([name], flag(argv, "command"))
    elif kind == "scp":
        copy([argv[3].partition(":")[0]], argv[2], argv[3].partition(":")[2])
    elif kind.endswith(("create", "create workload-policy")):
        what = kind.partition(" create")[0]
        if [what, name] in made:
            fail(f"ERROR: (gcloud) The resource '{name}' already exists")
        made.append([what, name])
        if what in ("instances", "instance-groups managed"):
            world["pods"][name] = {"states": world["plan"].pop(0) if world["plan"] else ["RUNNING"]}
    elif kind.endswith("delete"):
        what = kind.removesuffix(" delete")
        if [what, name] not in made:
            fail(f"ERROR: (gcloud) Could not fetch resource:\n - The resource '{name}' was not found")
        made.remove([what, name])
        wipe(name)
    elif kind.endswith(("list-instances", "describe")):
        what = kind.rpartition(" ")[0]
        if [what, name] not in made:
            fail(f"ERROR: (gcloud) Could not fetch resource:\n - The resource '{name}' was not found")
        state = next_state(world, name)
        if what == "instances":
            print(json.dumps({"name": name, "status": state}))
        else:
            names = [] if state == "NONE" else [f"{name}-{end}" for end in ("x1", "y2")]
            at = "https://compute.googleapis.com/projects/p/zones/z/instances/"
            print(json.dumps([{"instance": at + n, "instanceStatus": state} for n in names]))
    else:
        fail(f"ERROR: this fake does not know {argv}")


def main(argv):
    with open(f"{FAKE}/calls.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\n")
    with open(WORLD) as file:
        world = json.load(file)
    for rule in world["fail"]:
        if rule["words"] in " ".join(argv) and rule["times"]:
            rule["times"] -= 1
            keep(world)
            fail(rule["stderr"])
    argv = argv[1:] if argv[0] == "alpha" else argv
    if argv[:2] == ["compute", "tpus"]:
        if argv[2] == "tpu-vm":
            nodes = [(node, pod.get("node", "READY")) for pod in world["pods"].values() for node in pod["nodes"]]
            print(json.dumps([{"name": f"projects/p/locations/z/nodes/{node}", "state": state} for node, state in nodes]))
        else:
            queued(argv, world)
    elif argv[0] == "compute":
        compute(argv, world)
    if argv[1] not in ("ssh", "scp") and argv[3:4] not in (["ssh"], ["scp"]):
        keep(world)


main(sys.argv[1:])

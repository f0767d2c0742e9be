#!/usr/bin/env python3
"""How communication weighs: two hosts that are network namespaces, joined by wires of several rates and delays (bench/wire.py),
train a model for a few steps, one thread each.

    bench/network.py PROGRAM RECIPE STAGE RATE,… DELAY,… STEPS [--set KEY=VALUE …]
    bench/network.py target/release/shoestring recipes/launch.toml pretrain none,100mbit,1gbit,10gbit 0.2,5 20

One JSON object for each wire: what it gives, what a step sends, how long a step takes, and how long a rank waits in it, on average.
The first step is left out, and the run is killed after the last. Needs root, iproute2, Open MPI and a program that was built with
--features mpi. `none` is a wire without a rate or delay. docs/network.jsonl keeps what was measured; bench/scaling.py reads it.
"""
import json, os, stat, subprocess, sys, tempfile, time

import wire

BITS = {"none": None, "100mbit": 1e8, "1gbit": 1e9, "10gbit": 1e10}


def main():
    program, recipe = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2])
    stage, rates, delays, steps = sys.argv[3], sys.argv[4].split(","), sys.argv[5].split(","), int(sys.argv[6])
    for rate in rates:
        for delay in delays if BITS[rate] else ["0"]:
            with wire.Hosts(2, rate if BITS[rate] else None, float(delay) / 1000) as hosts:
                gives = wire.measure(hosts, 1.5)
                with tempfile.TemporaryDirectory() as work:
                    found = train(hosts, work, program, recipe, stage, steps, sys.argv[7:])
            name = f"{os.path.basename(recipe)} {stage}"
            print(json.dumps({"what": name, "rate": BITS[rate], "delay": float(delay) / 1000} | gives | found), flush=True)


def train(hosts, work, program, recipe, stage, steps, settings):
    """What a stage's first steps, without the very first, say on average."""
    agent = f"{work}/agent"
    with open(agent, "w") as file:
        # Starts a command on a host as ssh would: a namespace and a name of its own.
        file.write(
            '#!/bin/sh\nhost="ss-host-$((${1##*.} - 1))"; shift\n'
            'exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"\n'
        )
    os.chmod(agent, os.stat(agent).st_mode | stat.S_IXUSR)
    network = f"{hosts.address(0).rsplit('.', 1)[0]}.0/24"
    mpi = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "2"]
    mpi += ["--host", f"{hosts.address(0)}:1,{hosts.address(1)}:1", "--mca", "plm_rsh_agent", agent]
    mpi += ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]
    mpi += ["--mca", "btl_tcp_if_include", network, "--mca", "oob_tcp_if_include", network]
    job = [program, "run", recipe, "--threads", "1", "--stages", stage, "--out", f"{work}/run", "--set", "parallel.shards=2"]
    for key in "eval_every", "sample_every", "checkpoint_seconds":
        job += ["--set", f"stage.{stage}.{key}=0"]
    first = ["unshare", "--uts", "sh", "-c", f'hostname {hosts.name(0)}; exec "$@"', "-"]
    with open(f"{work}/log", "w") as log:
        started = subprocess.Popen(
            hosts.on(0, *first, *mpi, *job, *settings), stdout=log, stderr=log, env=os.environ | {"TMPDIR": work}
        )
        lines = []
        while len(lines) <= steps:
            if started.poll() is not None:
                sys.exit(f"the run has ended after {len(lines)} steps:\n" + open(log.name).read()[-2000:])
            time.sleep(0.2)
            lines = read(f"{work}/run/metrics.jsonl", stage)
    hosts.end()
    started.wait()
    whole = lines[1:steps + 1]
    mean = lambda key: sum(line[key] for line in whole) / steps
    return {
        "steps": steps,
        **{key: mean(key) for key in ("step_seconds", "waiting_seconds", "sent_bytes")},
    }


def read(path, stage):
    """The lines of a stage's steps that are whole."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return [line for line in lines if line["stage"] == stage and "waiting_seconds" in line]


if __name__ == "__main__":
    if len(sys.argv) < 7:
        sys.exit(__doc__)
    main()

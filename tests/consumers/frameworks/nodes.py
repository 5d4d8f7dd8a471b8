"""Two nodes on one machine: each has a network, processes and a name of its own, and dies as a whole."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "link0"
SETUP = f"""
set -e
mount -t tmpfs none /run
for node in 0 1; do ip netns add node$node; ip -n node$node link set lo up; done
ip link add {INTERFACE} netns node0 type veth peer name {INTERFACE} netns node1
ip -n node0 address add {ADDRESSES[0]}/24 dev {INTERFACE}
ip -n node1 address add {ADDRESSES[1]}/24 dev {INTERFACE}
for node in 0 1; do ip -n node$node link set {INTERFACE} up; done
echo connected
exec sleep infinity
"""


class Nodes:
    """Starts programs on two nodes; node 0 and node 1 reach each other at `ADDRESSES` and nothing else."""

    def __init__(self, holder):
        self._holder = holder
        self._started = ([], [])

    def start(self, node, command, output, **environment):
        """A process on a node; its standard output and errors are appended to a file."""
        named = f'hostname node{node}; exec ip netns exec node{node} "$@"'
        with output.open("ab") as file:
            process = subprocess.Popen(
                [*self._inside, "unshare", "--uts", "sh", "-c", named, "sh", *map(str, command)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._started[node].append(process)
        return process

    def kill(self, node):
        """End every process of a node at once, as if it lost power."""
        while pids := self._pids(node):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self._started[node]:
            process.wait()

    def _pids(self, node):
        command = [*self._inside, "ip", "netns", "pids", f"node{node}"]
        return list(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))

    @property
    def _inside(self):
        return "nsenter", f"--target={self._holder}", "--user", "--mount", "--net", "--preserve-credentials", "--"


@contextmanager
def two_nodes():
    """`Nodes`; skips the test where the kernel, or a missing program, does not allow them."""
    missing = [program for program in ("ip", "nsenter", "unshare") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"two nodes on one machine need the program {missing[0]}")
    command = ["unshare", "--map-root-user", "--mount", "--net", "sh", "-c", SETUP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout.readline() != "connected\n":
                pytest.skip(f"no network namespaces of users here: {holder.stderr.read().strip()}")
            nodes = Nodes(holder.pid)
            try:
                yield nodes
            finally:
                for node in (0, 1):
                    nodes.kill(node)
        finally:
            holder.kill()


def torchrun(program, *arguments, nodes, node):
    """The command of torchrun on a node; node 0 has the meeting point of all."""
    rendezvous = {"is_host": 1 - node, "last_call_timeout": 1, "keep_alive_interval": 1}
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", 1),
        *("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29400", "--rdzv_id", "cells"),
        *("--rdzv_conf", ",".join(f"{name}={value}" for name, value in rendezvous.items())),
        *("--local_addr", ADDRESSES[node], "--max_restarts", 3),
        *(program.__file__, *arguments),
    ]

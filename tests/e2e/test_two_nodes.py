"""Two nodes on one machine: a launcher each with an address of its own; one is cut off and killed, and comes back."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from erw.bench import _lives
from erw.checkpoint import found
from erw.settings import to_dict
from launch import environment
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY, TIMEOUT = 60, 4, 5.0
LAST = STEPS * BATCH


@dataclass
class Node:
    """Where a launcher runs: commands before it, its address, its network interface, and how to cut that off."""

    name: str
    prefix: list[str]
    address: str
    interface: str
    namespace: str = ""

    def link(self, state: str) -> None:
        """The interface ``up`` or ``down``; nothing without one of its own."""
        if self.namespace:
            ip("-n", self.namespace, "link", "set", self.interface, state)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())


@pytest.fixture
def nodes():
    """Two network namespaces with a cable between them; two launchers on the loopback where that is not permitted."""
    names = [f"erw{os.getpid()}{letter}" for letter in "ab"]
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for place, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.213.7.{place}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [
            Node(f"node{place}", ["ip", "netns", "exec", name, *named, f"node{place}"], f"10.213.7.{place}", name, name)
            for place, name in enumerate(names, start=1)
        ]
    except (OSError, FileNotFoundError) as error:
        print(f"no network namespaces here ({error}): two launchers on the loopback instead")
        yield [Node(name, [], "127.0.0.1", "lo") for name in (socket.gethostname(), "localhost")]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class Launcher:
    """torchrun on one node, with one rank."""

    def __init__(self, node: Node, nodes: list[Node], port: int, jobs: Path, log: Path):
        self.log = log
        rendezvous = f"is_host={int(node is nodes[0])},join_timeout=200,last_call_timeout=1,keep_alive_interval=1"
        options = {
            "--nnodes": 2, "--nproc-per-node": 1, "--max-restarts": 3, "--rdzv-backend": "c10d", "--rdzv-id": "two",
            "--rdzv-endpoint": f"{nodes[0].address}:{port}", "--rdzv-conf": rendezvous, "--local-addr": node.address,
        }  # fmt: skip
        command = [*node.prefix, sys.executable, "-m", "torch.distributed.run"]
        command += [str(word) for option in options.items() for word in option]
        env = environment(
            OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=node.interface, DS_ACCELERATOR="cpu", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
        )  # fmt: skip  (docs/survival.md)
        with log.open("wb") as file:
            self.process = subprocess.Popen([*command, str(ROOT / "tests/support/ranks.py"), str(jobs)],
                                            stdout=file, stderr=file, env=env, cwd=ROOT)  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """The launcher and everything below it, as when a node loses its power."""
        processes = [self.process]
        if self.process.poll() is None:
            processes += psutil.Process(self.process.pid).children(recursive=True)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()


def until(true, seconds: float, launchers: list[Launcher]) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "\n".join(launcher.said()[-3000:] for launcher in launchers)
        time.sleep(0.02)


def job(out: Path):
    engine = {"ds_config": "zero2", "precision": "bf16", "timeout": TIMEOUT}
    return tiny("sit", out, images=LAST, engine=engine, train={"save_every": EVERY * BATCH, "keep": 99, "resume": "auto"})


def test_a_job_on_two_nodes_goes_on_when_a_node_dies_and_comes_back(nodes, tmp_path):
    jobs, run = tmp_path / "jobs.json", tmp_path / "run"
    jobs.write_text(json.dumps([to_dict(job(run))]))
    port = _lives.free_port()
    launchers = [Launcher(node, nodes, port, jobs, tmp_path / f"{place}.log") for place, node in enumerate(nodes)]
    try:
        until(lambda: found(run / "checkpoints"), 120, launchers)
        nodes[1].link("down")
        launchers[1].kill()
        died = time.monotonic()
        name = re.escape(f"rank 1 ({nodes[1].name})" if nodes[1].namespace else f"rank 1 ({socket.gethostname()})")
        lost = re.compile(
            rf"erw: error: \[rank 0\] {name} gave no sign of life for 5 s; last seen after image [\d,]+, in [a-z ]+: start"
        )
        until(lambda: lost.search(launchers[0].said()), 60, launchers)
        assert time.monotonic() - died < 4 * TIMEOUT
        stopped_at = int(found(run / "checkpoints")[-1].name)
        assert 0 < stopped_at < LAST
        nodes[1].link("up")
        launchers.append(Launcher(nodes[1], nodes, port, jobs, tmp_path / "2.log"))
        for launcher in (launchers[0], launchers[2]):
            assert launcher.process.wait(200) == 0, launcher.said()[-3000:]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert f"resumed {run}/checkpoints/{stopped_at:012d}" in launchers[0].said() + launchers[2].said()
    life = _lives.start([job(tmp_path / "whole")], 2, tmp_path)
    assert life.wait(120) == [0, 0]
    assert difference(state_at(run, LAST), state_at(tmp_path / "whole", LAST)) == 0.0

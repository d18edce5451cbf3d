"""Bursts of load, and what each cost the proxy."""

import json
import re
import subprocess
import time
from pathlib import Path

import machine
from answers import KEY, ORIGIN
from machine import Fault

HERE = Path(__file__).resolve().parent


class Burst:
    """What one burst came to."""

    def __init__(self, requests, refused, length, wall, cpu):
        self.requests, self.refused, self.length = requests, refused, length
        self.micros = cpu / requests * 1e6
        self.busy = cpu / wall
        self.rate = requests / wall


def _fields(origin):
    fields = ["-H", f"Authorization: Bearer {KEY}"]
    return fields + (["-H", f"Origin: {origin}"] if origin else [])


def wrk(pid, port, path, cores, *, seconds=1, connections=64, origin=ORIGIN, threads=1, host="127.0.0.1"):
    """HTTP/1.1, each connection asking anew as soon as it is answered."""
    url = f"http://{host}:{port}{path}"
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "burst.lua")]
    return _measure(pid, command + _fields(origin) + [url], cores, seconds, _of_wrk)


def h2load(pid, port, path, cores, *, seconds=1, origin=ORIGIN):
    """HTTP/2: 8 connections of 16 streams."""
    command = ["h2load", "-t1", "-c8", "-m16", "-D", str(seconds)]
    url = f"http://127.0.0.1:{port}{path}"
    return _measure(pid, command + _fields(origin) + [url], cores, seconds, _of_h2load)


def steady(proxy, request, *, seconds=1, connections=64, variants=1):
    """As [`wrk`], over TLS where the proxy speaks it. wrk's core, where the upstream is too, would be full before a fast
    proxy's, which then pays for falling asleep and waking."""
    with proxy.steady("closed", request, connections, seconds, variants) as generator:
        before, started = machine.cpu_seconds(proxy.pid), time.monotonic()
        came = generator.go()
        cpu, wall = machine.cpu_seconds(proxy.pid) - before, time.monotonic() - started
    return Burst(came["requests"], came["refused"], came["bytes"] / came["requests"], wall, cpu)


def _measure(pid, command, cores, seconds, understand):
    before, started = machine.cpu_seconds(pid), time.monotonic()
    output = machine.ask(command, cores, seconds + 20)
    cpu, wall = machine.cpu_seconds(pid) - before, time.monotonic() - started
    requests, refused, length = understand(output)
    if not requests:
        raise Fault("nothing was answered")
    # The load's own start and end are no part of the burst.
    return Burst(requests, refused, length, min(wall, seconds), cpu)


def _of_wrk(output):
    counted = json.loads(output.strip().splitlines()[-1])
    if counted["errors"]:
        raise Fault(f"{counted['errors']} requests failed")
    requests = counted["requests"]
    return requests, counted["refused"], counted["bytes"] / max(requests, 1)


def _of_h2load(output):
    total = re.search(r"requests: \d+ total, \d+ started, (\d+) done, \d+ succeeded, (\d+) failed", output)
    other = re.search(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    data = re.search(r"\((\d+)\) data", output)
    if not (total and other and data):
        raise Fault(f"h2load said something else: {output[-200:]}")
    requests = int(total[1])
    if int(total[2]):
        raise Fault(f"{total[2]} requests failed")
    return requests, sum(int(count) for count in other.groups()), int(data[1]) / max(requests, 1)


class Steady:
    """The load generator beside this file, at the moment when all its connections are there."""

    def __init__(self, binary, mode, port, cores, request, connections, seconds, last, env):
        command = [str(binary), mode, f"127.0.0.1:{port}", str(connections), str(seconds), str(last)]
        with machine.on(cores):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={"STEADY_REQUEST": request.decode(), **env},
                start_new_session=True,
            )
        machine.go_first(self._process)

    def __enter__(self):
        try:
            self._line("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def go(self):
        """Lets it begin; what it came to."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.result()

    def result(self):
        return json.loads(self._line("{"))

    def _line(self, beginning):
        line = self._process.stdout.readline()
        if not line.startswith(beginning):
            self._process.kill()
            raise Fault(f"the load failed: {line}{self._process.stderr.read().strip()}")
        return line

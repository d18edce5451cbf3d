"""Processes, cores, and what the kernel says about both."""

import os
import platform
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path


class Fault(Exception):
    """Something that makes a figure worthless, said to the reader in its place."""


class Cores:
    """Where the proxy runs, and where the load and the upstream do."""

    def __init__(self):
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise Fault("two cores are needed: one for the proxy, one for the load")
        self.proxy, self.load = {allowed[0]}, {allowed[1]}
        # With two workers the load has cores of its own only where there are four.
        self.pair, self.beside = set(allowed[:2]), set(allowed[2:4] if len(allowed) >= 4 else allowed[:2])


class Processes:
    """Everything started here; each is ended by its own id, whatever happens."""

    def __init__(self):
        self._running = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self._running):
            _end(process)
        self._running.clear()

    def start(self, command, cores, log, env=None):
        """A process on `cores`, with what it says in the file `log`."""
        with log.open("ab") as output, on(cores):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
            )
        self._running.append(process)
        go_first(process)
        return process

    def stop(self, process):
        _end(process)
        self._running.remove(process)


class on:
    """What is started meanwhile runs on these cores."""

    def __init__(self, cores):
        self.cores = cores

    def __enter__(self):
        self.before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)

    def __exit__(self, *_):
        os.sched_setaffinity(0, self.before)


def _end(process):
    # To a proxy that drains, a second signal means at once.
    for patience in (0.3, 3):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        process.kill()
        process.wait()


def ask(command, cores, seconds):
    """What a command that ends by itself prints, standard error included."""
    with on(cores):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )
    go_first(process)
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        raise Fault(f"{command[0]} failed: {output.strip()[-300:]}")
    return output


def family(pid):
    """`pid` and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += family(int(child))
        except OSError:
            pass
    return found


def cpu_seconds(pid):
    """What the whole process tree has had of the processors, to the nanosecond."""
    total = 0
    for member in family(pid):
        for task in Path(f"/proc/{member}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                pass
    return total / 1e9


def resident(pid):
    """Bytes of the whole process tree in memory."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def busy_seconds():
    """What all processors of the machine have worked."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) for field in first]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


_given = set()


def free_ports(count):
    """Ports that nobody listens on. Where thousands of connections have just ended, the kernel soon names one again: each is
    given once only, for who has it may not listen yet."""
    tried, ports = [], []
    while len(ports) < count:
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        tried.append(taken)
        port = taken.getsockname()[1]
        if port not in _given:
            _given.add(port)
            ports.append(port)
    for taken in tried:
        taken.close()
    return ports


def wait_for(port, process, log, seconds=20):
    """Until somebody listens there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Fault(f"did not start: {log.read_text(errors='replace').strip()[-600:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise Fault(f"was not there after {seconds} s")


def many_files(wanted=65536):
    """As many file descriptors as are allowed, for what is started here too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(wanted, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return most
        except (ValueError, OSError):
            continue
    return hard


def go_first(process):
    """What is measured is not to wait for whatever else the machine does, where that may be asked for."""
    for ask_for in (
        lambda: os.setpriority(os.PRIO_PROCESS, process.pid, -10),
        # A session of its own is a group of its own to the scheduler, and it is the groups that share a core.
        lambda: Path(f"/proc/{process.pid}/autogroup").write_text("-10"),
    ):
        try:
            ask_for()
        except OSError:
            pass


def at_once(pid):
    """A process tree that is not to wait for its core behind who has it at the moment; whether that may be asked for."""
    try:
        for member in family(pid):
            os.sched_setscheduler(member, os.SCHED_FIFO, os.sched_param(1))
        return True
    except OSError:
        return False


def as_others(pid):
    """The other way round."""
    for member in family(pid):
        os.sched_setscheduler(member, os.SCHED_OTHER, os.sched_param(0))


def about():
    """The machine, for the reader of the figures."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"

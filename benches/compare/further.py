"""Rows whose figure is no CPU time: latency, two workers, the start, memory; and how the cost of a request grows."""

import re
import time
import urllib.request
from dataclasses import dataclass, replace

import load
import machine
from answers import KEYS, check_page, get, hold, request_text
from contestants import Direct, MetorialProxy, Work
from rows import LIST, ONE, ROUNDS_OF_A_PROCESS, Limit, Row, Series, faults_of


@dataclass(frozen=True)
class Latency(Row):
    """What is added to upstream's own latency at a rate that all can bear: the 99th of a hundred requests."""

    rate: int = 2000

    def contestants(self, everyone):
        yield from super().contestants(everyone)
        yield Direct()

    def burst(self, proxy):
        request = request_text(self.path, key=proxy.key)
        # More than it could ever need: who waits for a connection waits in the figure, too.
        with proxy.steady("open", request, 64, self.seconds, self.rate) as steady:
            return steady.result()

    def judge(self, burst, length):
        """The load itself held each answer to be a 200, and itself to the times when they were due."""
        hold(burst["away"] < 0.05, f"the load did not have its core for {burst['away']:.0%} of the time")

    def note(self, series, burst):
        series.values.append(burst["p99"])
        series.notes.append(burst)

    def measure(self, everyone, site, rounds, say):
        # The load never lets go of the core that it has in common with the upstream.
        if not machine.at_once(site.server.pid):
            found = [Series(one.name, one.ours) for one in self.contestants(everyone)]
            for series in found:
                series.fault = "the upstream may not be scheduled in real time: root may"
            return found
        try:
            *found, direct = super().measure(everyone, site, rounds, say)
        finally:
            machine.as_others(site.server.pid)
        for series in found:
            if direct.fault and not series.fault:
                series.fault = f"upstream itself: {direct.fault}"
            series.values = [through - bare for through, bare in zip(series.values, direct.values)]
        found.append(direct)
        return found


@dataclass(frozen=True)
class Workers(Row):
    """Requests per second of two workers on two cores; where there are no more, the load is on them, too, for all alike."""

    def burst(self, proxy):
        cores = proxy.site.cores
        busy, started = machine.busy_seconds(), time.monotonic()
        burst = load.wrk(proxy.pid, proxy.port, self.path, cores.beside, seconds=self.seconds, connections=128, threads=2)
        burst.full = (machine.busy_seconds() - busy) / (time.monotonic() - started) / len(cores.pair | cores.beside)
        return burst

    def judge(self, burst, length):
        super().judge(burst, length)
        hold(burst.full >= 0.90, f"the cores were busy for {burst.full:.0%} only: no throughput")

    def note(self, series, burst):
        series.values.append(burst.rate)


@dataclass(frozen=True)
class Fresh(Row):
    """Rows for which each figure needs a process of its own."""

    def contestants(self, everyone):
        for one in super().contestants(everyone):
            # How it sends files makes no difference here.
            if one.proxies and not getattr(one, "sendfile", False):
                yield one

    def measure(self, everyone, site, rounds, say):
        found = [(one, Series(one.name, one.ours)) for one in self.contestants(everyone)]
        for number in range(self.times(rounds)):
            for contestant, series in found if number % 2 == 0 else found[::-1]:
                if not series.fault:
                    with faults_of(series):
                        series.values.append(self.once(contestant, site))
            say(f"{self.title}: round {number + 1} of {self.times(rounds)}")
        return [series for _, series in found]

    def times(self, rounds):
        return rounds

    def try_once(self, everyone, site):
        return self.measure(everyone, site, 1, lambda _: None)

    def once(self, contestant, site):
        raise NotImplementedError


@dataclass(frozen=True)
class Start(Fresh):
    """From the command to the first answer, and what is resident then."""

    memory: bool = False

    def once(self, contestant, site):
        port = machine.free_ports(1)[0]
        command, env = contestant.command(site, self.work, port)
        log = site.directory / f"{contestant.name}.log"
        began = time.perf_counter()
        process = site.processes.start(command, site.cores.proxy, log, env)
        try:
            answer = first_answer(port, self.path, process)
            took = (time.perf_counter() - began) * 1000
            check_page(answer, self.work.size)
            return machine.resident(process.pid) / 2**20 if self.memory else took
        finally:
            site.processes.stop(process)


def first_answer(port, path, process):
    until = time.monotonic() + 20
    while True:
        try:
            return get(port, path)
        except ConnectionRefusedError:
            hold(process.poll() is None and time.monotonic() < until, "it did not start")
            time.sleep(0.0002)


@dataclass(frozen=True)
class Idle(Fresh):
    """Memory of an open connection after one request."""

    connections: int = 10_000

    def times(self, rounds):
        return max(1, rounds // 3)

    def once(self, contestant, site):
        proxy = contestant.start(site, self.work)
        try:
            self.warm_up(proxy)
            self.burst(proxy)
            before = machine.resident(proxy.pid)
            with proxy.steady("closed", request_text(self.path), self.connections, 1, 1) as steady:
                idle = machine.resident(proxy.pid)
                # They are all still there: each asks again.
                hold(steady.go()["requests"] >= self.connections, "not every connection was served again")
            return (idle - before) / self.connections / 1024
        finally:
            proxy.stop()


@dataclass(frozen=True)
class Clients(Fresh):
    """Memory of a client IP that is remembered."""

    clients: int = 1_000_000

    def times(self, rounds):
        return 1

    def once(self, contestant, site):
        proxy = contestant.start(site, self.work)
        try:
            self.warm_up(proxy)
            many(proxy, request_text(self.path), 1000)
            before = machine.resident(proxy.pid)
            many(proxy, request_text(self.path, extra="X-Forwarded-For: {ip}\r\n"), self.clients)
            tracked = self.clients
            if isinstance(contestant, MetorialProxy):
                tracked = tracked_clients(contestant)
                hold(tracked > 0.95 * self.clients, f"only {tracked} are tracked")
            return (machine.resident(proxy.pid) - before) / tracked
        finally:
            proxy.stop()


def many(proxy, request, variants):
    """Asks once for each."""
    with proxy.steady("closed", request, 64, 0, variants) as steady:
        hold(steady.go()["requests"] == variants, "not all were answered")


def tracked_clients(contestant):
    with urllib.request.urlopen(f"http://127.0.0.1:{contestant.admin}/metrics", timeout=5) as answer:
        return int(re.search(r"^metorial_proxy_tracked_clients (\d+)", answer.read().decode(), re.MULTILINE)[1])


FURTHER = (
    Latency("latency", "latency added at 2000/s, 99th percentile", ONE, limits=(Limit(1.3, "nginx"),), seconds=2, digits=0),
    Workers("workers", "cache hit, 2 KB, two workers on two cores", LIST, Work(workers=2), "hit",
            (Limit(1.0, "nginx", least=True),), unit="requests/s", digits=0),
    Start("start", "start to first answer", ONE, limits=(Limit(50, None),), unit="ms", digits=1),
    Start("resident", "resident after it", ONE, limits=(Limit(25, None),), unit="MiB", digits=1, memory=True),
    Idle("idle", "idle connection", LIST, kind="hit", limits=(Limit(22, None),), unit="KiB", digits=1),
    # One request of a client is remembered for 43 s then, and no sweep forgets the first of them before the last.
    Clients("clients", "tracked client IP", LIST, Work(forwarded=2000), "hit", (Limit(64, None),), unit="bytes", digits=0),
)


@dataclass(frozen=True)
class Growth:
    """The cost of a request with little of something and with much: each against itself."""

    key: str
    title: str
    sizes: tuple
    # Filled in for each size: connections, and how many variants of the request there are.
    connections: object
    variants: object
    request: bytes
    work: Work = Work()
    keys: bool = False
    most: float = 1.3
    # Whose growth is told beside ours, for what of it is the kernel's and the library's.
    beside: tuple = ()

    def measure(self, contestant, site, rounds, say):
        """A process for each size, in bursts that take turns; each gets another as those of a [`Row`] do."""
        running = {}
        found = [(size, Series(f"{size:,}", True)) for size in self.sizes]
        try:
            for number in range(rounds):
                if number % ROUNDS_OF_A_PROCESS == 0:
                    for size, series in found:
                        if not series.fault:
                            with faults_of(series):
                                self.renew(contestant, size, running, site)
                for size, series in found if number % 2 == 0 else found[::-1]:
                    if not series.fault:
                        with faults_of(series):
                            series.values.append(self.burst(running[size], size))
                say(f"{self.title}, {contestant.name}: round {number + 1} of {rounds}")
        finally:
            for proxy in running.values():
                proxy.stop()
        return [series for _, series in found]

    def renew(self, contestant, size, running, site):
        """A process that has so much of it, warm."""
        if size in running:
            running.pop(size).stop()
        one = replace_keys(contestant, size) if self.keys else contestant
        running[size] = one.start(site, self.work)
        running[size].get(LIST)
        if self.variants(size) > 1:
            many(running[size], self.request, self.variants(size))
        self.burst(running[size], size)

    def burst(self, proxy, size):
        connections, variants = self.connections(size), self.variants(size)
        return load.steady(proxy, self.request, connections=connections, variants=variants).micros


def replace_keys(contestant, count):
    """The same proxy with fewer keys."""
    return MetorialProxy(contestant.name, contestant.binary, keys=count)


def _always(count):
    return lambda _: count


# Little of it, where nothing is measured.
TRIED = (
    Start("start", "start to first answer", ONE),
    replace(FURTHER[4], connections=50),
    replace(FURTHER[5], clients=1000),
)

GROWTH = (
    Growth("connections", "connections", (10, 1000, 10_000), lambda size: size, _always(1), request_text(LIST),
           beside=("nginx", "bare hyper")),
    Growth("pages", "cached pages", (1, 100, 10_000), _always(64), lambda size: size,
           request_text("/providers?limit=20&after=pro_{n}")),
    Growth("keys", "publishable keys", (1, 1000), _always(64), lambda size: size,
           request_text(LIST, key=KEYS[0].replace("0000", "{n}")), keys=True),
    Growth("client-ips", "client IPs", (1000, 1_000_000), _always(64), lambda size: size,
           request_text(LIST, extra="X-Forwarded-For: {ip}\r\n"), Work(forwarded=2000)),
)

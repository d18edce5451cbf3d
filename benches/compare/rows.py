"""What is measured, row by row, and how much it may cost."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median

from answers import NOBODY, check_page, hold, request_text
from contestants import BareHyper, MetorialProxy, Nginx, Work
from machine import Fault

import load

OURS = "metorial-proxy"
# So many rounds, then all are started anew: one process differs from the next of the same program by up to 8 %, by where in
# memory it happens to lie.
ROUNDS_OF_A_PROCESS = 2
LIST, LARGE, ONE = "/providers?limit=20", "/provider-listings?limit=20", "/providers/pro_0123456789"


@dataclass(frozen=True)
class Limit:
    """What of ours may be: a multiple of another's figure, or a figure."""

    most: float
    of: str | None = None
    # The other way round: at least that much.
    least: bool = False

    def text(self, unit):
        sign = "≥" if self.least else "≤"
        return f"{sign} {self.most:.2f} × {self.of}" if self.of else f"{sign} {self.most:g} {unit}"

    def holds(self, figure):
        return figure >= self.most if self.least else figure <= self.most


class Series:
    """The figures of one contestant in one row, round by round."""

    def __init__(self, name, ours=False):
        self.name, self.ours = name, ours
        self.values, self.rates, self.notes = [], [], []
        self.fault = None

    def middle(self):
        return median(self.values)

    def rate(self):
        """Requests per second, where mostly it was the proxy that had no more to give."""
        full = [rate for rate in self.rates if rate is not None]
        return median(full) if len(full) * 2 > len(self.values) else None


class faults_of:
    """What goes wrong with one contestant is its fault, not the run's."""

    def __init__(self, series):
        self.series = series

    def __enter__(self):
        return self

    def __exit__(self, kind, fault, _):
        if isinstance(fault, (Fault, OSError)):
            self.series.fault = str(fault)
            return True
        return False


@dataclass(frozen=True)
class Row:
    """One kind of request in bursts; the figure is the CPU time of each."""

    key: str
    title: str
    path: str = LIST
    work: Work = field(default_factory=Work)
    # "hit": one page for all; "pass": each asks upstream; "refused": 429.
    kind: str = "pass"
    limits: tuple = ()
    seconds: int = 1
    unit: str = "µs"
    digits: int = 2

    def contestants(self, everyone):
        """Those that can do this work."""
        for one in everyone:
            only_hits = isinstance(one, BareHyper) or isinstance(one, Nginx) and one.sendfile
            if one.can(self.work) and (self.kind == "hit" or not only_hits):
                yield one

    def measure(self, everyone, site, rounds, say):
        """Bursts A B C, C B A, … of all; what answers wrongly is left out, with the reason."""
        running = {}
        found = {Series(one.name, one.ours): one for one in self.contestants(everyone)}
        # Ours, which is the first, between those that it is compared with: bare hyper is the last. What disturbs the machine
        # comes and goes within seconds.
        around = [*found][-1:] + [*found][:-1]
        try:
            for number in range(rounds):
                turns = around if number % 2 == 0 else around[::-1]
                for series in turns if number % ROUNDS_OF_A_PROCESS == 0 else ():
                    if not series.fault:
                        with faults_of(series):
                            self.renew(found[series], series, running, site)
                for series in turns:
                    if series.fault:
                        continue
                    with faults_of(series):
                        self.check(running[series])
                        burst = self.burst(running[series])
                        self.judge(burst, series.length)
                        self.check(running[series])
                        self.note(series, burst)
                say(f"{self.title}: round {number + 1} of {rounds}")
        finally:
            for proxy in running.values():
                proxy.stop()
        return list(found)

    def renew(self, contestant, series, running, site):
        """A process of its own for the next rounds, warm."""
        if series in running:
            running.pop(series).stop()
        running[series] = contestant.start(site, self.work)
        series.length = self.warm_up(running[series])
        self.burst(running[series])

    def try_once(self, everyone, site):
        """One short burst of all at once: whether everything works, and nothing about time."""
        running, found = {}, []
        try:
            for contestant in self.contestants(everyone):
                series = Series(contestant.name, contestant.ours)
                found.append(series)
                with faults_of(series):
                    running[series] = contestant.start(site, self.work)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda pair: self._try(*pair), running.items()))
        finally:
            for proxy in running.values():
                proxy.stop()
        return found

    def _try(self, series, proxy):
        with faults_of(series):
            length = self.warm_up(proxy)
            self.judge(self.burst(proxy), length)
            self.check(proxy)

    def burst(self, proxy):
        if self.work.h2:
            return load.h2load(proxy.pid, proxy.port, self.path, proxy.site.cores.load, seconds=self.seconds)
        return load.steady(proxy, request_text(self.path), seconds=self.seconds)

    def note(self, series, burst):
        series.values.append(burst.micros)
        series.rates.append(burst.rate if burst.busy >= 0.95 else None)

    def warm_up(self, proxy):
        """Fills the cache or spends the limit, and shows that keys are checked; the length of a right answer."""
        proxy.get(self.path)
        if self.kind != "refused" and proxy.contestant.proxies:
            hold(proxy.get(self.path, key=None).status == 401, "a request without a key is served")
            hold(proxy.get(self.path, key=NOBODY).status == 401, "a request with an unknown key is served")
        return self.check(proxy).length

    def check(self, proxy):
        """Asks twice: both answers are right, and from the cache or from upstream as they should be."""
        first, second = proxy.get(self.path), proxy.get(self.path)
        if self.kind == "refused":
            for answer in (first, second):
                hold(answer.status == 429, f"status {answer.status} in place of 429")
            return second
        cors = proxy.contestant.proxies
        same = check_page(first, self.work.size, cors) == check_page(second, self.work.size, cors)
        hold(same == (self.kind == "hit"), "a page out of a cache" if same else "two requests, two pages: no hit")
        if isinstance(proxy.contestant, MetorialProxy):
            check_own(second, self.kind)
        return second

    def judge(self, burst, length):
        """The whole burst: its statuses, and how long its answers were on average."""
        if self.kind == "refused":
            # The first of a minute may pass.
            served = burst.requests - burst.refused
            hold(served <= 2, f"{served} requests were not refused")
        else:
            hold(burst.refused == 0, f"{burst.refused} of {burst.requests} answers had another status")
        wanted = self.work.size if self.work.h2 else length
        # Under way at the end, counted in bytes and not as answers; and fields with figures that grow.
        hold(abs(burst.length - wanted) <= 0.02 * wanted, f"answers of {burst.length:.0f} bytes in place of {wanted}")


def check_own(answer, kind):
    """Ours says more than the others."""
    for name in ("x-request-id", "ratelimit", "ratelimit-policy"):
        hold(name in answer.fields, f"no {name}")
    if kind == "hit":
        hold(answer.fields.get("cache-status", "").startswith("metorial-proxy; hit; "), "no hit in Cache-Status")
        hold("etag" in answer.fields and "age" in answer.fields, "no ETag or Age")


BURSTS = (
    Row("hit", "cache hit, 2 KB", kind="hit", limits=(Limit(0.80, "nginx"), Limit(1.35, "bare hyper"))),
    Row("hit20", "cache hit, 20 KB", LARGE, Work(size=20480), "hit", (Limit(0.85, "nginx"),)),
    Row("pass", "pass-through, 2 KB", ONE, limits=(Limit(1.05, "nginx"), Limit(0.85, "HAProxy"))),
    Row("pass-tls", "pass-through, 2 KB, TLS upstream", ONE, Work(upstream_tls=True), limits=(Limit(1.0, "nginx"),)),
    Row("refuse", "429 by client IP", LIST, Work(refuse=True), "refused", (Limit(0.95, "nginx"),)),
    Row("tls", "cache hit, 2 KB, TLS 1.3", LIST, Work(tls=True), "hit", (Limit(0.60, "HAProxy"),)),
    Row("h2", "cache hit, 2 KB, HTTP/2, 8 × 16 streams", LIST, Work(h2=True), "hit", (Limit(1.10, "HAProxy"),)),
)

"""What is measured, row by row: the work, what a right answer is, and how much it may cost."""

from dataclasses import dataclass, field
from statistics import median

import load
from answers import NOBODY, check_page, hold
from contestants import BareHyper, MetorialProxy, Nginx, Work
from machine import Fault

OURS = "metorial-proxy"


@dataclass(frozen=True)
class Limit:
    """What of ours may be, as a multiple of another's figure, or in itself."""

    most: float
    of: str | None = None


@dataclass(frozen=True)
class Row:
    """One kind of request, in bursts that take turns."""

    key: str
    title: str
    path: str
    work: Work = field(default_factory=Work)
    # "hit": one page for all; "pass": each asks upstream; "refused": 429.
    kind: str = "pass"
    limits: tuple = ()
    # A handshake per connection is part of a burst: over TLS a longer one makes little of it.
    seconds: int = 1
    unit: str = "µs"


LIST, LARGE, ONE = "/providers?limit=20", "/provider-listings?limit=20", "/providers/pro_0123456789"

BURSTS = (
    Row("hit", "cache hit, 2 KB", LIST, kind="hit", limits=(Limit(0.80, "nginx"), Limit(1.35, "bare hyper"))),
    Row("hit20", "cache hit, 20 KB", LARGE, Work(size=20480), "hit", (Limit(0.85, "nginx"),)),
    Row("pass", "pass-through, 2 KB", ONE, limits=(Limit(1.05, "nginx"), Limit(0.85, "HAProxy"))),
    Row("pass-tls", "pass-through, 2 KB, upstream over TLS", ONE, Work(upstream_tls=True), limits=(Limit(1.0, "nginx"),)),
    Row("refuse", "429 by client IP", LIST, Work(refuse=True), "refused", (Limit(0.95, "nginx"),)),
    Row("tls", "cache hit, 2 KB, TLS 1.3", LIST, Work(tls=True), "hit", (Limit(0.60, "HAProxy"),), seconds=3),
    Row("h2", "cache hit, 2 KB, HTTP/2, 8 × 16 streams", LIST, Work(h2=True), "hit", (Limit(1.10, "HAProxy"),)),
)


class Series:
    """The figures of one contestant in one row."""

    def __init__(self, contestant):
        self.contestant = contestant
        self.micros, self.rates, self.busy = [], [], []
        self.fault = None

    @property
    def name(self):
        return self.contestant.name

    def middle(self):
        return median(self.micros)

    def spread(self):
        return min(self.micros), max(self.micros)

    def rate(self):
        """Requests per second, where it was the proxy that had no more to give."""
        full = [rate for rate, busy in zip(self.rates, self.busy) if busy >= 0.95]
        return median(full) if len(full) * 2 > len(self.rates) else None


def fitting(row, contestants):
    """Those that can do this row's work."""
    for contestant in contestants:
        if not contestant.can(row.work):
            continue
        if isinstance(contestant, BareHyper) and row.kind != "hit":
            continue
        if isinstance(contestant, Nginx) and contestant.sendfile and row.kind != "hit":
            continue
        yield contestant


def measure(row, contestants, site, rounds, say):
    """Bursts A B C, C B A, … of all that can do this; what answers wrongly is left out, with the reason."""
    series, running = [Series(contestant) for contestant in fitting(row, contestants)], {}
    try:
        for one in series:
            with _faults(one):
                running[one] = one.contestant.start(site, row.work)
                one.length = warm_up(row, running[one])
                burst(row, running[one], site.cores.load)
        for number in range(rounds):
            for one in series if number % 2 == 0 else reversed(series):
                if one.fault:
                    continue
                with _faults(one):
                    check(row, running[one])
                    done = burst(row, running[one], site.cores.load)
                    judge(row, one, done)
                    check(row, running[one])
                    one.micros.append(done.micros)
                    one.rates.append(done.rate)
                    one.busy.append(done.busy)
            say(f"{row.title}: round {number + 1} of {rounds}")
    finally:
        for process in running.values():
            process.stop()
    return series


def burst(row, proxy, cores, **options):
    if row.work.h2:
        return load.h2load(proxy.pid, proxy.port, row.path, cores, seconds=row.seconds, **options)
    return load.wrk(proxy.pid, proxy.port, row.path, cores, seconds=row.seconds, tls=row.work.tls, **options)


def warm_up(row, proxy):
    """Fills the cache or spends the limit, and shows that keys are checked; the length of a right answer."""
    proxy.get(row.path)
    if row.kind == "refused":
        return check(row, proxy).length
    if proxy.contestant.proxies:
        hold(proxy.get(row.path, key=None).status == 401, "a request without a key is served")
        hold(proxy.get(row.path, key=NOBODY).status == 401, "a request with an unknown key is served")
    return check(row, proxy).length


def check(row, proxy):
    """Asks twice: both answers are right, and from the cache or from upstream as they should be."""
    first, second = proxy.get(row.path), proxy.get(row.path)
    if row.kind == "refused":
        for answer in (first, second):
            hold(answer.status == 429, f"status {answer.status} in place of 429")
        return second
    cors = proxy.contestant.proxies
    same = check_page(first, row.work.size, cors) == check_page(second, row.work.size, cors)
    hold(same == (row.kind == "hit"), "two requests, two pages: no hit" if not same else "a page out of a cache")
    if isinstance(proxy.contestant, MetorialProxy):
        for name in ("x-request-id", "ratelimit", "ratelimit-policy"):
            hold(name in second.fields, f"no {name}")
        if row.kind == "hit":
            hold(second.fields.get("cache-status", "").startswith("metorial-proxy; hit; "), "no hit in Cache-Status")
            hold("etag" in second.fields and "age" in second.fields, "no ETag or Age")
    return second


def judge(row, one, done):
    """The whole burst: its statuses, and how long its answers were on average."""
    if row.kind == "refused":
        # The first of a minute may pass.
        hold(done.requests - done.refused <= 2, f"{done.requests - done.refused} requests were not refused")
    else:
        hold(done.refused == 0, f"{done.refused} of {done.requests} answers had another status")
    wanted = row.work.size if row.work.h2 else one.length
    # Under way at the end, counted in bytes and not as answers; and fields with figures that grow.
    hold(abs(done.length - wanted) <= 0.02 * wanted, f"answers of {done.length:.0f} bytes in place of {wanted}")


class _faults:
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

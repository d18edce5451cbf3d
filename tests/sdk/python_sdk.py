"""The official Python SDK, unchanged but for `api_host`, against the proxy in front of the stand-in API.

Started by tests/sdk_python.rs. Holds the publishable key alone. One line per check; the first that fails ends it.
"""

import argparse
import faulthandler
import json
import re
import time

import requests
from metorial import Metorial
from metorial.exceptions import AuthenticationError, NotFoundError, PermissionDeniedError, RateLimitError

# A hang ends with a traceback, not with the patience of whoever runs the tests.
faulthandler.dump_traceback_later(150, exit=True)

arguments = argparse.ArgumentParser()
arguments.add_argument("--key", required=True, help="the publishable key")
arguments.add_argument("--secret-ends", required=True, help="the last four characters of the secret key")
arguments.add_argument("--proxy", required=True)
arguments.add_argument("--mock", required=True)
arguments.add_argument("--tight-proxy", required=True, help="a proxy whose budget is --small-budget in 5 s, uncached")
arguments.add_argument("--tight-mock", required=True)
arguments.add_argument(
    "--distant-proxy", required=True, help="the same in 600 s, which its clients.max_retry_after of 1 s leaves out"
)
arguments.add_argument("--distant-mock", required=True)
arguments.add_argument("--small-budget", required=True, type=int)
given = arguments.parse_args()


def passed(check):
    print(f"ok: {check}", flush=True)


def refused(error, call):
    """The error that `call` ends with, which must be of the class `error`."""
    try:
        call()
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was expected, but the call succeeded")


def pages_and_rights():
    deployments = Metorial(api_key=given.key, api_host=given.proxy).provider_deployments

    ids, sizes, after = [], [], None
    while True:
        page = deployments.list(limit=20, after=after)
        ids += [item.id for item in page.items]
        sizes.append(len(page.items))
        if not page.pagination.has_more_after:
            break
        after = page.items[-1].id
    assert sizes == [20, 20, 17], sizes
    assert len(set(ids)) == 57, len(set(ids))
    passed("57 deployments come page after page, each once")

    assert [item.id for item in deployments.list(limit=20).items] == ids[:20]
    passed("the first page reads the same again")

    found = deployments.get(ids[41])
    assert found.id == ids[41], found.id
    assert found.created_at is not None
    passed("one deployment comes by its id")

    missing = refused(NotFoundError, lambda: deployments.get("pde_nobody"))
    assert missing.body["code"] == "not_found", missing.body
    passed("the API's own 404 passes through")

    told = refused(PermissionDeniedError, lambda: deployments.create(provider_id="pro_1", name="mine"))
    assert told.status_code == 403, told.status_code
    assert told.body["code"] == "forbidden", told.body
    assert "POST /provider-deployments" in told.body["hint"], told.body
    assert told.request_id and told.request_id == told.body["request_id"], (told.request_id, told.body)
    passed("a write is refused by 403, with the rule that would open it and the request's id")

    stranger = Metorial(api_key="metorial_pk_nobodyknowsthisone", api_host=given.proxy)
    unknown = refused(AuthenticationError, lambda: stranger.provider_deployments.list(limit=1))
    assert unknown.body["code"] == "unauthorized", unknown.body
    passed("an unknown publishable key is refused by 401")


class Watch:
    """Notes each answer's status and what it tells of limits below the SDK, and each sleep of the SDK."""

    def __init__(self):
        self.answers, self.sleeps = [], []
        self.really = True
        send, sleep = requests.Session.send, time.sleep

        def watched_send(*args, **kwargs):
            answer = send(*args, **kwargs)
            told = [answer.headers.get(name) for name in ("Retry-After", "RateLimit")]
            self.answers.append((answer.status_code, *told))
            return answer

        def watched_sleep(seconds):
            self.sleeps.append(seconds)
            if self.really:
                sleep(seconds)

        requests.Session.send, time.sleep = watched_send, watched_sleep

    def reset(self, really):
        self.answers.clear()
        self.sleeps.clear()
        self.really = really

    def refusals(self):
        """Retry-After and RateLimit of each 429."""
        return [told for status, *told in self.answers if status == 429]

    def waits(self):
        """The Retry-After of each 429: whole seconds, at most the window and its guard against jitter, rounded up."""
        waits = [int(retry_after) for retry_after, _ in self.refusals()]
        assert all(1 <= wait <= 6 for wait in waits), waits
        return waits


def spend(deployments, wanted):
    """Spends the small budget of one window. The error of the first request beyond it."""
    admitted = 1  # The one that found out what to ask for.
    try:
        while admitted <= given.small_budget:
            deployments.get(wanted)
            admitted += 1
        raise AssertionError(f"{admitted} requests were admitted in one window of {given.small_budget}")
    except RateLimitError as limited:
        assert limited.status_code == 429
        assert limited.body["code"] == "rate_limit_exceeded", limited.body
        assert limited.body["violated-policies"] == ["environment"], limited.body
        assert limited.request_id == limited.body["request_id"], (limited.request_id, limited.body)
        assert admitted == given.small_budget, admitted
        passed(f"a budget of {given.small_budget} admits {admitted}, then comes 429")
        return limited


def short_waits_are_slept(watch):
    deployments = Metorial(api_key=given.key, api_host=given.tight_proxy).provider_deployments
    wanted = deployments.list(limit=1).items[0].id

    # The SDK tries four times; without really waiting in between all of them are refused.
    watch.reset(really=False)
    spend(deployments, wanted)
    waits = watch.waits()
    assert len(waits) == 4, watch.answers
    assert watch.sleeps == [wait + 3 for wait in waits[:3]], (watch.sleeps, waits)
    passed(f"the SDK would have slept for what Retry-After said, and 3 s: {watch.sleeps}")

    # And now it really sleeps, once, and then it is let through.
    watch.reset(really=True)
    started = time.monotonic()
    for _ in range(4 * given.small_budget):
        assert deployments.get(wanted).id == wanted
        if watch.sleeps:
            break
    took = time.monotonic() - started
    waits = watch.waits()
    assert len(waits) == 1 and watch.sleeps == [waits[0] + 3], (watch.answers, watch.sleeps)
    assert took >= watch.sleeps[0], (took, watch.sleeps)
    assert watch.answers[-1][0] == 200, watch.answers
    passed(f"the SDK slept for {watch.sleeps[0]} s as told, and the next attempt succeeded")


def long_waits_are_told_after_short_sleeps(watch):
    deployments = Metorial(api_key=given.key, api_host=given.distant_proxy).provider_deployments
    wanted = deployments.list(limit=1).items[0].id

    # Without Retry-After the SDK tries four times as well, but it doesn't sleep for what there is to wait.
    watch.reset(really=False)
    limited = spend(deployments, wanted)
    refusals = watch.refusals()
    assert [retry_after for retry_after, _ in refusals] == [None] * 4, refusals
    assert watch.sleeps == [3, 3, 3], watch.sleeps
    wait = limited.body["retry_after"]
    assert 590 <= wait <= 610, wait
    for _, rate_limit in refusals:
        assert re.fullmatch(r'"environment";r=0;t=(59|60)\d', rate_limit), rate_limit
    passed(f"of a wait beyond max_retry_after the SDK tells after 9 s: {wait} s, in the body")


def what_the_api_saw(mock, methods):
    text = requests.get(f"{mock}/_mock/requests", timeout=30).text
    seen = json.loads(text)
    assert seen["requests"], seen
    assert given.key not in text and given.key[-4:] not in text, "the publishable key went upstream"
    for request in seen["requests"]:
        assert given.secret_ends in json.dumps(request["headers"]), request
        assert request["method"] in methods, request
    assert seen["refused"] == 0, seen["refused"]
    passed(f"the API saw {len(seen['requests'])} requests, each with the secret key alone, and refused none")


watch = Watch()
pages_and_rights()
what_the_api_saw(given.mock, {"GET"})
short_waits_are_slept(watch)
what_the_api_saw(given.tight_mock, {"GET"})
long_waits_are_told_after_short_sleeps(watch)
what_the_api_saw(given.distant_mock, {"GET"})

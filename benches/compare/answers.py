"""What is right: the pages, the request that asks for them, and how an answer is told from a wrong one."""

import re
import secrets
import socket
import ssl
import subprocess

from machine import Fault

ORIGIN = "https://app.example.com"
KEYS = [f"metorial_pk_{number:04}{'x' * 28}" for number in range(1000)]
SECRETS = [f"metorial_sk_{letter * 32}" for letter in "abc"]
# One of the many, in the second of three environments.
KEY = KEYS[617]
NOBODY = "metorial_pk_" + "0" * 32


def secret_of(key):
    """Three environments: 400, 300 and 300 keys."""
    at = KEYS.index(key)
    return SECRETS[0 if at < 400 else 1 if at < 700 else 2]


def _items(length):
    """JSON as the API sends it, of exactly `length` bytes."""
    text, at = "", 0
    while len(text) < length:
        text += (
            f'{{"object":"provider","id":"pro_{at:016}","name":"Provider {at}","description":"What provider {at} does.",'
            f'"metadata":{{}},"created_at":"2026-01-01T00:00:00.000Z"}},'
        )
        at += 1
    return text[:length]


_HEAD, _TAIL = '{"object":"list","request":"', '"],"more":true}'
# nginx fills in which request it is; no word of its configuration may be longer than 4096 bytes.
REQUEST = "$request_id"
PART = _items(3900)


def _page(items):
    return f'{_HEAD}{REQUEST}","items":["{items}{_TAIL}'


_FRAME = len(_page("")) - len(REQUEST) + 32
PAGE_2K = _page(_items(2048 - _FRAME))
PAGE_20K = _page("$part" * 5 + _items(20480 - _FRAME - 5 * 3900))


def body(size, request):
    """The page of that size that answers one request."""
    page = PAGE_2K if size == 2048 else PAGE_20K.replace("$part", PART)
    return page.replace(REQUEST, request)


def a_body(size):
    return body(size, secrets.token_hex(16)).encode()


class Answer:
    """A status, fields and a body."""

    def __init__(self, status, fields, content, length):
        self.status, self.fields, self.body, self.length = status, fields, content, length

    def request(self):
        """Which request of the upstream's made this page."""
        found = re.match(rb'\{"object":"list","request":"([0-9a-f]{32})"', self.body)
        return found and found[1].decode()


def request_text(path, key=KEY, origin=ORIGIN, extra=""):
    credentials = f"Authorization: Bearer {key}\r\n" if key else ""
    origin = f"Origin: {origin}\r\n" if origin else ""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{credentials}{origin}{extra}\r\n".encode()


def get(port, path, tls=None, **request):
    """One request over HTTP/1.1, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        connection = tls.wrap_socket(plain, server_hostname="localhost") if tls else plain
        with connection:
            connection.sendall(request_text(path, **request))
            return read(connection)


def read(connection):
    """One answer, whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    if fields.get("transfer-encoding") == "chunked":
        raise Fault("the answer is in chunks, although its length was known")
    while len(content) < int(fields.get("content-length", 0)):
        content += _some(connection)
    return Answer(int(lines[0].split()[1]), fields, content, len(head) + 4 + len(content))


def _some(connection):
    data = connection.recv(65536)
    if not data:
        raise Fault("the connection ended within an answer")
    return data


def get_h2(port, path, key=KEY, origin=ORIGIN):
    """One request over HTTP/2, by nghttp."""
    command = ["nghttp", "--verbose", "--timeout=5", f"http://127.0.0.1:{port}{path}"]
    if key:
        command[1:1] = ["-H", f"authorization: Bearer {key}"]
    if origin:
        command[1:1] = ["-H", f"origin: {origin}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    fields = {
        name.decode(): value.decode()
        for name, value in re.findall(rb"recv \(stream_id=\d+(?:, sensitive)?\) (:?[a-z0-9-]+): ([^\r\n]*)", done.stdout)
    }
    if ":status" not in fields:
        raise Fault(f"no answer over HTTP/2: {done.stdout.decode(errors='replace').strip()[-200:]}")
    # The body stands between the frames as they were received.
    found = re.search(rb'\{"object":"list".*?"more":true\}', done.stdout, re.DOTALL)
    return Answer(int(fields[":status"]), fields, found[0] if found else b"", 0)


def trusting(certificate):
    """What a caller over TLS 1.3 checks the certificate with."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def hold(condition, what):
    if not condition:
        raise Fault(what)


def check_page(answer, size, cors=True):
    """A page, whole, as a browser may read it."""
    hold(answer.status == 200, f"status {answer.status} in place of 200")
    request = answer.request()
    hold(request, f"no page: {answer.body[:80]!r}")
    hold(answer.body == body(size, request).encode(), f"another body of {len(answer.body)} bytes")
    hold(answer.fields.get("content-type") == "application/json", "another content type")
    if cors:
        hold(answer.fields.get("access-control-allow-origin") == ORIGIN, "no Access-Control-Allow-Origin")
    return request

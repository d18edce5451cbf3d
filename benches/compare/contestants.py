"""Who is compared, and how each is told to do the same work."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import answers
import machine
from answers import KEY, KEYS, ORIGIN, SECRETS, secret_of
from load import Steady

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Work:
    """What a row asks of a proxy."""

    size: int = 2048
    tls: bool = False
    h2: bool = False
    upstream_tls: bool = False
    # Refuses all but the first request of a client IP.
    refuse: bool = False
    # Believes X-Forwarded-For, and lets a client IP have so many requests a day: it is remembered for long.
    forwarded: int = 0
    workers: int = 1


class Site:
    """The files, the certificate and the upstream that all contestants have in common."""

    def __init__(self, directory, processes, cores, steady):
        self.directory, self.processes, self.cores, self.steady = directory, processes, cores, steady
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.memory = Path("/dev/shm") / f"metorial-proxy-compare-{directory.stat().st_ino}"
        self.certificate = directory / "localhost.pem"
        self._make_certificate()
        self._write_keys()
        self.plain, self.encrypted = machine.free_ports(2)
        config = self.fill("upstream.conf", "upstream.conf", {
            "UPSTREAM": self.plain,
            "UPSTREAM_TLS": self.encrypted,
            "SECRETS": " ".join(f'"Bearer {secret}" 1;' for secret in SECRETS),
            "PAGE_2K": answers.PAGE_2K,
            "PAGE_20K": answers.PAGE_20K,
            "PART": answers.PART,
        })
        log = directory / "upstream.log"
        self.server = processes.start(nginx(config, directory), cores.load, log)
        machine.wait_for(self.plain, self.server, log)
        self.tls = answers.trusting(self.certificate)

    def close(self):
        shutil.rmtree(self.memory, ignore_errors=True)

    def upstream(self, work):
        return f"localhost:{self.encrypted}" if work.upstream_tls else f"127.0.0.1:{self.plain}"

    def fill(self, template, name, values):
        """A template with its `@NAMES@` filled in, as a file."""
        values = {"DIR": self.directory, "SHM": self.memory, "ORIGIN": ORIGIN, **values}
        text = (HERE / "config" / template).read_text()
        filled = re.sub(r"@([A-Z][A-Z0-9_]*)@", lambda found: str(values[found[1]]), text)
        path = self.directory / name
        path.write_text(filled)
        return path

    def _make_certificate(self):
        key = self.directory / "localhost.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
             "-keyout", str(key), "-out", str(self.certificate), "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
            check=True, capture_output=True,
        )
        both = self.certificate.read_text() + key.read_text()
        (self.directory / "both.pem").write_text(both)

    def _write_keys(self):
        nginx_map = "".join(f'"Bearer {key}" {secret_of(key)};\n' for key in KEYS)
        (self.directory / "nginx-keys.map").write_text(nginx_map)
        (self.directory / "haproxy-keys.map").write_text("".join(f"{key} {secret_of(key)}\n" for key in KEYS))
        for at, secret in enumerate(SECRETS):
            (self.directory / f"secret-{at}").write_text(secret)


class Contestant:
    """One proxy that can be started for any work."""

    name = ""
    proxies = True
    ours = False

    def can(self, work):
        """Whether it is made for this."""
        return True

    def start(self, site, work):
        """A running one, ready to serve."""
        port = machine.free_ports(1)[0]
        cores = site.cores.proxy if work.workers == 1 else site.cores.pair
        log = site.directory / f"{self.name}.log"
        command, env = self.command(site, work, port)
        process = site.processes.start(command, cores, log, env)
        machine.wait_for(port, process, log)
        return Running(self, site, work, process, port)

    def command(self, site, work, port):
        """What is run, and its environment."""
        raise NotImplementedError

    def version(self):
        raise NotImplementedError


class Running:
    """A contestant under way."""

    def __init__(self, contestant, site, work, process, port):
        self.contestant, self.site, self.work, self.process, self.port = contestant, site, work, process, port

    @property
    def name(self):
        return self.contestant.name

    @property
    def pid(self):
        return self.process.pid

    @property
    def key(self):
        """What a request to it has to have."""
        return KEY if self.contestant.proxies or isinstance(self.contestant, BareHyper) else SECRETS[0]

    def steady(self, mode, request, connections, seconds, last):
        """Load of our own, on the core of the load."""
        site, env = self.site, {}
        if self.work.tls:
            env["STEADY_ROOTS"] = str(site.certificate)
        if self.work.refuse:
            env["STEADY_REFUSED"] = "yes"
        return Steady(site.steady, mode, self.port, site.cores.load, request, connections, seconds, last, env)

    def get(self, path, **request):
        request.setdefault("key", self.key)
        if self.work.h2:
            return answers.get_h2(self.port, path, **request)
        return answers.get(self.port, path, self.site.tls if self.work.tls else None, **request)

    def stop(self):
        if self.process:
            self.site.processes.stop(self.process)


class Direct(Contestant):
    """Nobody in between: the upstream itself."""

    name = "upstream itself"
    proxies = False

    def start(self, site, work):
        return Running(self, site, work, None, site.plain)


class MetorialProxy(Contestant):
    """With what is on in production: everything."""

    ours = True

    def __init__(self, name, binary, keys=len(KEYS)):
        self.name, self.binary, self.keys = name, Path(binary).resolve(), keys

    def command(self, site, work, port):
        environments = ""
        for at, secret in enumerate(SECRETS):
            mine = [key for key in KEYS[: self.keys] if secret_of(key) == secret]
            if not mine:
                continue
            environments += (
                f'[[environments]]\nname = "environment-{at}"\nkind = "production"\n'
                'limit = { requests = 10000000, window = "10m" }\n'
                f'secret_key = {{ file = "{site.directory}/secret-{at}" }}\n'
                f'origins = ["{ORIGIN}"]\nallow = ["catalog", "GET /provider-deployments"]\n'
                f"publishable_keys = {mine}\n\n".replace("'", '"')
            )
        limit = '{ requests = 10000000, window = "1s" }'
        if work.refuse:
            limit = '{ requests = 1, window = "24h" }'
        elif work.forwarded:
            limit = f'{{ requests = {work.forwarded}, window = "24h" }}\nmax_tracked = 2000000'
        tls = f'tls = {{ certificate = "{site.certificate}", private_key = "{site.directory}/localhost.key" }}'
        self.admin = machine.free_ports(1)[0]
        config = site.fill("metorial-proxy.toml", f"{self.name}.toml", {
            "PORT": port,
            "ADMIN": self.admin,
            "WORKERS": work.workers,
            "TRUSTED": 'trusted_proxies = ["127.0.0.0/8"]' if work.forwarded else "",
            "TLS": tls if work.tls else "",
            "CLIENT_LIMIT": limit,
            "SCHEME": "https" if work.upstream_tls else "http",
            "UPSTREAM_ADDRESS": site.upstream(work),
            "CA": f'ca_certificate = "{site.certificate}"' if work.upstream_tls else "",
            "ENVIRONMENTS": environments,
        })
        return [str(self.binary), "--config", str(config)], {}

    def version(self):
        return _said([str(self.binary), "--version"])


class Nginx(Contestant):
    """With pages in memory, and `sendfile` off, which is better for small ones, or on."""

    def __init__(self, sendfile=False):
        self.sendfile = sendfile
        self.name = "nginx-sendfile" if sendfile else "nginx"

    def can(self, work):
        return not (self.sendfile and (work.refuse or work.upstream_tls or work.workers > 1))

    def command(self, site, work, port):
        cache = site.memory
        cache.mkdir(exist_ok=True)
        shutil.rmtree(cache / self.name, ignore_errors=True)
        options = " ssl" if work.tls else " http2" if work.h2 else ""
        config = site.fill("nginx.conf", f"{self.name}.conf", {
            "WORKERS": work.workers,
            "SENDFILE": "on" if self.sendfile else "off",
            "SHM": cache / self.name,
            "CLIENT": "$binary_remote_addr",
            "CLIENT_ZONE": "320m" if work.forwarded else "10m",
            "CLIENT_RATE": "1r/m" if work.refuse or work.forwarded else "1000000r/s",
            "CLIENT_BURST": "" if work.refuse else "burst=1000000 nodelay",
            "UPSTREAM_ADDRESS": site.upstream(work),
            "SCHEME": "https" if work.upstream_tls else "http",
            "LISTEN": f"127.0.0.1:{port}{options}",
            "TLS": f"ssl_certificate {site.certificate}; ssl_certificate_key {site.directory}/localhost.key; "
                   "ssl_protocols TLSv1.3;" if work.tls else "",
            "REAL_IP": "set_real_ip_from 127.0.0.0/8; real_ip_header X-Forwarded-For;" if work.forwarded else "",
        })
        (cache / self.name).mkdir()
        return nginx(config, site.directory), None

    def version(self):
        return _said([program("nginx"), "-v"]).removeprefix("nginx version: ")


class HAProxy(Contestant):
    name = "HAProxy"

    def command(self, site, work, port):
        options = f" ssl crt {site.directory}/both.pem" if work.tls else " proto h2" if work.h2 else ""
        upstream_tls = f"ssl verify required ca-file {site.certificate} sni str(localhost) force-tlsv13"
        config = site.fill("haproxy.cfg", "haproxy.cfg", {
            "WORKERS": work.workers,
            "LISTEN": f"127.0.0.1:{port}{options}",
            "CLIENT": "hdr_ip(x-forwarded-for)" if work.forwarded else "src",
            "CLIENT_SIZE": "2m" if work.forwarded else "100k",
            "CLIENT_EXPIRE": "1h" if work.forwarded else "10s",
            "CLIENT_LIMIT": "1" if work.refuse else "1000000000",
            "UPSTREAM_ADDRESS": site.upstream(work).replace("localhost", "127.0.0.1"),
            "UPSTREAM_TLS_OPTIONS": upstream_tls if work.upstream_tls else "",
        })
        return [program("haproxy"), "-db", "-f", str(config)], None

    def version(self):
        return _said([program("haproxy"), "-v"]).replace(" version", "").split(" 20")[0]


class Envoy(Contestant):
    name = "Envoy"

    def __init__(self, binary):
        self.binary = binary

    def can(self, work):
        return not work.forwarded

    def command(self, site, work, port):
        plenty = "{ max_tokens: 1000000000, tokens_per_fill: 1000000000, fill_interval: 1s }"
        ours = f"{{ certificate_chain: {{ filename: {site.certificate} }}, private_key: {{ filename: {site.directory}/localhost.key }} }}"
        theirs = f"validation_context: {{ trusted_ca: {{ filename: {site.certificate} }} }}"
        config = site.fill("envoy.yaml", "envoy.yaml", {
            "PORT": port,
            "CLIENT_BUCKET": "{ max_tokens: 1, tokens_per_fill: 1, fill_interval: 86400s }" if work.refuse else plenty,
            "CREDENTIALS": json.dumps([{"key": key, "client": secret_of(key)} for key in KEYS]),
            "UPSTREAM_PORT": site.encrypted if work.upstream_tls else site.plain,
            "TLS": _envoy_tls("Downstream", f"tls_certificates: [{ours}]") if work.tls else "",
            "UPSTREAM_TLS": _envoy_tls("Upstream", theirs, ", sni: localhost") if work.upstream_tls else "",
        })
        return [str(self.binary), "-c", str(config), "--concurrency", str(work.workers), "--log-level", "error",
                "--disable-hot-restart"], None

    def version(self):
        return re.sub(r".*/(\d+\.\d+\.\d+)/.*", r"envoy \1", _said([str(self.binary), "--version"]))


def _envoy_tls(direction, context, more=""):
    kind = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext"
    common = f"{{ tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}, {context} }}"
    typed = f'{{ "@type": {kind}, common_tls_context: {common}{more} }}'
    return f"transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {typed} }}"


class BareHyper(Contestant):
    """No proxy: what the HTTP library and the kernel take of any answer."""

    name = "bare hyper"
    proxies = False

    def __init__(self, binary):
        self.binary = binary

    def can(self, work):
        return not (work.tls or work.refuse or work.upstream_tls or work.forwarded or work.workers > 1)

    def command(self, site, work, port):
        page = site.directory / "page"
        page.write_bytes(answers.a_body(work.size))
        return [str(self.binary), f"127.0.0.1:{port}", str(page)] + (["h2"] if work.h2 else []), {}

    def version(self):
        lock = (HERE.parent.parent / "Cargo.lock").read_text()
        return "hyper " + re.search(r'name = "hyper"\nversion = "([^"]+)"', lock)[1]


def nginx(config, directory):
    # What it would write to before it has read its configuration.
    return [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]


def program(name):
    """Debian keeps servers where a plain user does not look."""
    return shutil.which(name) or f"/usr/sbin/{name}"


def _said(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return (done.stdout + done.stderr).strip().splitlines()[0]

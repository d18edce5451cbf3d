//! `[server]`: what is refused, and what holds.

use secrecy::ExposeSecret;

use super::sections::{refused, with};
use super::*;
use crate::config::ClientIpHeader;

#[test]
fn listeners_have_addresses_of_their_own() {
    refused(
        "server",
        &[
            ("listen = []", "server.listen", "nobody could connect"),
            ("listen = [\"localhost:8080\"]", "server.listen[0]", "no address"),
            ("listen = [\":8080\"]", "server.listen[0]", "no address"),
            ("listen = [\"[::1]:1\", \"[::1]:1\"]", "server.listen[1]", "taken by [::1]:1"),
            ("listen = [\"0.0.0.0:1\", \"127.0.0.1:1\"]", "server.listen[1]", "taken by 0.0.0.0:1"),
            (
                "admin = \"127.0.0.1:8080\"\nlisten = [\"127.0.0.1:8080\"]",
                "server.admin",
                "taken by 127.0.0.1:8080",
            ),
            ("admin = \"127.0.0.1\"", "server.admin", "no address"),
            ("admin = \"0.0.0.0:8080\"", "server.admin", "taken by 127.0.0.1:8080"),
            ("listen = [\"0.0.0.0:9090\"]", "server.admin", "its default is taken"),
        ],
    );
    let any = with(
        "server",
        "listen = [\"127.0.0.1:0\", \"127.0.0.1:0\", \"[::]:80\", \"0.0.0.0:80\"]\nadmin = \"127.0.0.1:0\"",
    );
    assert_eq!(any.config.server.listen.len(), 4);
}

#[test]
fn numbers_durations_and_sizes_of_the_server_have_bounds() {
    refused(
        "server",
        &[
            ("workers = 1025", "server.workers", "1025 is out of range; write 0 to 1024"),
            ("max_connections = 0", "server.max_connections", "out of range"),
            ("max_connections_per_ip = 0", "server.max_connections_per_ip", "out of range"),
            ("max_in_flight = 0", "server.max_in_flight", "out of range"),
            ("max_uri = \"64KiB\"", "server.max_uri", "\"64KiB\" is out of range; write \"1B\" to \"63KiB\""),
            ("max_uri = \"0B\"", "server.max_uri", "out of range"),
            ("max_header_bytes = \"1MiB\"", "server.max_header_bytes", "out of range"),
            ("max_request_body = \"2GiB\"", "server.max_request_body", "out of range"),
            (
                "header_read_timeout = \"0s\"",
                "server.header_read_timeout",
                "\"0s\" is out of range; write \"1ms\" to \"5m\"",
            ),
            ("header_read_timeout = 10", "server.header_read_timeout", "in quotes: \"10s\""),
            ("idle_timeout = \"0s\"", "server.idle_timeout", "out of range"),
            ("request_timeout = \"2h\"", "server.request_timeout", "out of range"),
            ("body_idle_timeout = \"0ms\"", "server.body_idle_timeout", "out of range"),
            ("drain = { settle = \"28s\" }", "server.drain.settle", "longer than deadline"),
            ("drain = { settle = \"5s\", deadline = \"1s\" }", "server.drain.settle", "longer than deadline"),
            ("drain = { deadline = \"0s\", settle = \"0s\" }", "server.drain.deadline", "out of range"),
        ],
    );
    assert!(with("server", "workers = 0").config.server.workers >= 1);
    assert_eq!(with("server", "workers = 3").config.server.workers, 3);
    assert!(with("server", "drain = { settle = \"0s\" }").config.server.drain.settle.is_zero());
}

#[test]
fn a_base_path_is_empty_or_has_no_trailing_slash() {
    for bad in ["/", "/a/", "a", "/a//b", "/../a", "/a?b", "/a%2f"] {
        refused("server", &[(&format!("base_path = {bad:?}"), "server.base_path", "no path prefix")]);
    }
    assert_eq!(with("server", "base_path = \"/api/v1.0\"").config.server.base_path, "/api/v1.0");
}

#[test]
fn trusted_proxies_are_networks() {
    refused(
        "server",
        &[
            ("trusted_proxies = [\"10.0.0.0/33\"]", "server.trusted_proxies[0]", "no network"),
            ("trusted_proxies = [\"10.0.0.1\", \"proxy.local\"]", "server.trusted_proxies[1]", "no network"),
            (
                "client_ip_header = \"x-real-ip\"",
                "server.client_ip_header",
                "\"x-forwarded-for\" or \"forwarded\"",
            ),
        ],
    );
    let server = with(
        "server",
        "trusted_proxies = [\"192.0.2.7\", \"2001:db8::1\", \"10.1.2.3/8\"]\nclient_ip_header = \"forwarded\"",
    );
    let networks: Vec<_> = server.config.server.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.0.2.7/32", "2001:db8::1/128", "10.0.0.0/8"]);
    assert_eq!(server.config.server.client_ip_header, ClientIpHeader::Forwarded);
    assert_eq!(show(&server.warnings), "");
    let mapped = ["::ffff:127.0.0.0/104", "::ffff:10.0.0.1", "::/95", "2001:db8::/96"];
    let mapped = with("server", &format!("trusted_proxies = {mapped:?}")).config.server.trusted_proxies;
    let mapped: Vec<_> = mapped.iter().map(ToString::to_string).collect();
    assert_eq!(mapped, ["127.0.0.0/8", "10.0.0.1/32", "::/95", "2001:db8::/96"]);
    let everyone = with("server", "trusted_proxies = [\"0.0.0.0/0\"]");
    fault_at(&everyone.warnings, "server.trusted_proxies");
}

#[test]
fn hosts_are_names_without_a_port_in_lower_case() {
    for bad in ["a.example:443", "https://a.example", "", "*.example", "a@b", "a/b", "[::1]:80"] {
        refused("server", &[(&format!("hosts = [{bad:?}]"), "server.hosts[0]", "no host")]);
    }
    let server =
        with("server", "hosts = [\"API.Example.com\", \"127.0.0.1\", \"::1\", \"[::0:1]\"]").config.server;
    assert_eq!(server.hosts, ["api.example.com", "127.0.0.1", "[::1]", "[::1]"]);
}

#[test]
fn tls_needs_both_files_and_they_are_there() {
    let file = TempFile::new("");
    let file = file.name();
    let directory = std::env::temp_dir();
    refused(
        "server",
        &[
            (&format!("tls = {{ certificate = {file:?} }}"), "server.tls.private_key", "is missing"),
            (&format!("tls = {{ private_key = {file:?} }}"), "server.tls.certificate", "is missing"),
            (
                &format!("tls = {{ certificate = {file:?}, private_key = \"/nonexistent\" }}"),
                "server.tls.private_key",
                "cannot be read",
            ),
            (
                &format!("tls = {{ certificate = {directory:?}, private_key = {file:?} }}"),
                "server.tls.certificate",
                "is a directory",
            ),
            ("tls = true", "server.tls", "a table belongs"),
        ],
    );
    assert!(
        with("server", &format!("tls = {{ certificate = {file:?}, private_key = {file:?} }}"))
            .config
            .server
            .tls
            .is_some()
    );
}

#[test]
fn the_admin_token_comes_from_elsewhere_and_fits_a_header() {
    let (token, broken) = (TempFile::new("t0ken\r\n"), TempFile::new("two words"));
    refused(
        "server",
        &[
            ("admin_token = \"hunter2\"", "server.admin_token", "a secret never stands in the configuration"),
            (&format!("admin_token = {{ file = {:?} }}", broken.name()), "server.admin_token", "white space"),
        ],
    );
    let server = with("server", &format!("admin_token = {{ file = {:?} }}", token.name())).config.server;
    assert_eq!(server.admin_token.as_ref().map(ExposeSecret::expose_secret), Some("t0ken"));
}

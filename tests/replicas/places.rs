//! Servers as they are found: with users and rights, behind TLS, as a cluster, shared with others. And what they learn of us.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use metorial_proxy::domain::quota::Quota;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use redis::Value;

use crate::client::{request, try_send};
use crate::fleet::{api, command, is_partitioned, served, shared};
use crate::harness::{KEY, Mock, OTHER_KEY, OTHER_SECRET, Proxy, SECRET, eventually, scratch};
use crate::redis_server::{RedisServer, free_port};

const ONCE: Quota = Quota { requests: 20, window: Duration::from_secs(3600) };

/// That two replicas share by way of this place, though one has most of the demand.
async fn assert_shared(url: &str, more: &str) -> (Mock, [Proxy; 2]) {
    let mock = api(ONCE).await;
    let proxies = [(), ()].map(|()| Proxy::start(mock.url(), &shared(ONCE, url, more)));
    for proxy in &proxies {
        eventually("both share", || !is_partitioned(proxy) && proxy.status().store.replicas == 2).await;
    }
    assert_eq!(served(proxies[0].address, 15).await, 15);
    assert_eq!(served(proxies[1].address, 10).await, 5);
    assert_eq!(mock.handle.refused(), 0);
    (mock, proxies)
}

#[tokio::test]
async fn a_user_with_a_password_and_the_rights_that_it_takes() {
    let rights = ["--user", "metorial", "on", ">s3cret", "~{metorial-proxy}*", "&{metorial-proxy}*", "-@all"];
    let commands = [
        "+hello",
        "+select",
        "+ping",
        "+subscribe",
        "+publish",
        "+evalsha",
        "+eval",
        "+time",
        "+hget",
        "+hmget",
        "+hset",
        "+hdel",
        "+hgetall",
        "+hincrby",
        "+del",
        "+pexpire",
    ];
    let server = RedisServer::with(&[&rights[..], &commands].concat());
    let password = scratch(&format!("store-password-{}", std::process::id()));
    std::fs::write(&password, "s3cret\n").expect("written");
    let more = format!("store.username = 'metorial'\nstore.password.file = '{}'", password.display());
    assert_shared(&server.url(), &more).await;
    std::fs::remove_file(password).expect("removed");
}

#[tokio::test]
async fn a_user_that_may_not_call_scripts_by_their_digest() {
    let rights = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-evalsha", "-script"];
    assert_shared(&RedisServer::with(&rights).url(), "").await;
}

#[tokio::test]
async fn a_server_behind_tls() {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("a name");
    let certificate = params.signed_by(&key, &ca).expect("a certificate");
    let files = [("ca", ca.pem()), ("crt", certificate.pem()), ("key", key.serialize_pem())];
    let [ca, certificate, key] = files.map(|(name, pem)| {
        let file = scratch(&format!("store-{}.{name}", std::process::id()));
        std::fs::write(&file, pem).expect("written");
        file.to_string_lossy().into_owned()
    });
    let port = free_port().to_string();
    let server = RedisServer::with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    assert_shared(&url, &format!("store.ca_certificate = '{ca}'")).await;
    // Without that CA nobody is believed, and the proxy serves all the same.
    let mock = api(ONCE).await;
    let proxy = Proxy::start(mock.url(), &shared(ONCE, &url, "store.min_replicas = 2"));
    assert_eq!(served(proxy.address, 20).await, 10);
    assert!(is_partitioned(&proxy));
    drop(server);
    for file in [ca, certificate, key] {
        std::fs::remove_file(file).expect("removed");
    }
}

/// Two nodes of a cluster, the second of which keeps our keys.
fn cluster() -> [RedisServer; 2] {
    let nodes = [(), ()].map(|()| {
        let bus = free_port().to_string();
        let file = format!("nodes-{}-{bus}.conf", std::process::id());
        let file = scratch(&file).to_string_lossy().into_owned();
        let node = RedisServer::with(&[
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            &file,
            "--cluster-port",
            &bus,
            "--cluster-require-full-coverage",
            "no",
        ]);
        (node, bus, file)
    });
    let [(first, ..), (second, bus, _)] = &nodes;
    let slot = slot(first);
    for (from, to) in [(0, slot - 1), (slot + 1, 16383)] {
        command(first, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
    }
    command(second, &["CLUSTER", "ADDSLOTS", &slot.to_string()]);
    command(first, &["CLUSTER", "MEET", "127.0.0.1", &second.port().to_string(), bus]);
    nodes.map(|(node, _, file)| {
        std::fs::remove_file(file).ok();
        node
    })
}

fn slot(node: &RedisServer) -> i64 {
    let slot = command(node, &["CLUSTER", "KEYSLOT", "{metorial-proxy}:epoch"]);
    redis::from_redis_value(slot).expect("a number")
}

/// Whether this node knows that `owner` has our keys.
fn leads_to(node: &RedisServer, owner: &RedisServer) -> bool {
    let client = redis::Client::open(node.url()).expect("a client");
    let mut connection = client.get_connection().expect("a connection");
    let asked: redis::RedisResult<Value> =
        redis::cmd("EVAL").arg("return 1").arg(1).arg("{metorial-proxy}:epoch").query(&mut connection);
    match asked {
        Ok(_) => node.port() == owner.port(),
        Err(error) => {
            error.redirect_node().is_some_and(|(at, _)| at.ends_with(&format!(":{}", owner.port())))
        }
    }
}

#[tokio::test]
async fn a_cluster_wherever_it_keeps_our_keys_and_wherever_they_go() {
    let nodes = cluster();
    let [first, second] = &nodes;
    for node in &nodes {
        eventually("the cluster is one", || leads_to(node, second)).await;
    }
    let (mock, proxies) = assert_shared(&first.url(), "").await;
    let Value::Array(keys) = command(second, &["KEYS", "*"]) else { panic!("no keys") };
    assert!(!keys.is_empty());
    // The slot goes to the other node, without what was in it: replicas know what was spent.
    let (slot, id) = (slot(first).to_string(), command(first, &["CLUSTER", "MYID"]));
    let id: String = redis::from_redis_value(id).expect("text");
    command(second, &["FLUSHALL"]);
    // A replica may speak to it at any moment, and then the node has keys in that slot again.
    eventually("it gives up the slot", || {
        let client = redis::Client::open(second.url()).expect("a client");
        let mut connection = client.get_connection().expect("a connection");
        let mut both = redis::pipe();
        both.atomic().cmd("FLUSHALL").cmd("CLUSTER").arg(&["SETSLOT", &slot, "NODE", &id]);
        both.query::<Value>(&mut connection).is_ok()
    })
    .await;
    command(first, &["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
    for node in &nodes {
        eventually("the slot has moved", || leads_to(node, first)).await;
    }
    eventually("they are there again", || {
        let Value::Array(keys) = command(first, &["KEYS", "*"]) else { return false };
        !keys.is_empty() && proxies.iter().all(|proxy| !is_partitioned(proxy))
    })
    .await;
    for proxy in &proxies {
        assert_eq!(served(proxy.address, 10).await, 0, "all of it was spent before");
    }
    assert_eq!(mock.handle.refused(), 0);
}

#[tokio::test]
async fn proxies_with_different_prefixes_do_not_see_each_other() {
    let server = RedisServer::start();
    for prefix in ["one", "two"] {
        let (_mock, proxies) = assert_shared(&server.url(), &format!("store.prefix = '{prefix}'")).await;
        assert_eq!(proxies[0].status().store.replicas, 2);
    }
    let Value::Array(keys) = command(&server, &["KEYS", "*"]) else { panic!("no keys") };
    let keys: Vec<String> = keys.into_iter().map(|key| redis::from_redis_value(key).expect("text")).collect();
    assert!(keys.iter().all(|key| key.starts_with("{one}:") || key.starts_with("{two}:")), "{keys:?}");
}

/// Every command that the server is sent, until it ends.
fn overheard(server: &RedisServer) -> std::sync::mpsc::Receiver<String> {
    let mut monitor = TcpStream::connect(("127.0.0.1", server.port())).expect("a connection");
    monitor.write_all(b"MONITOR\r\n").expect("sent");
    let (sender, lines) = channel();
    let mut monitor = BufReader::new(monitor).lines().map_while(Result::ok);
    assert_eq!(monitor.next().expect("an answer"), "+OK");
    std::thread::spawn(move || monitor.try_for_each(|line| sender.send(line)));
    lines
}

#[tokio::test]
async fn a_server_learns_neither_keys_nor_who_calls() {
    let mut server = RedisServer::start();
    let lines = overheard(&server);
    let more = "server.trusted_proxies = ['127.0.0.1']";
    let (_mock, proxies) = assert_shared(&server.url(), more).await;
    let client = "203.0.113.77";
    for key in [KEY, OTHER_KEY] {
        let fields = [("authorization", format!("Bearer {key}")), ("x-forwarded-for", client.to_owned())];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        for proxy in &proxies {
            try_send(proxy.address, request("GET", "/providers?limit=1", &fields, ""))
                .await
                .expect("an answer");
        }
    }
    for proxy in proxies {
        proxy.into_server().drain(Duration::ZERO, Duration::from_secs(10), std::future::pending()).await;
    }
    let Value::Array(kept) = command(&server, &["EVAL", DUMP, "0"]) else { panic!("nothing is kept") };
    let mut said: Vec<String> =
        kept.into_iter().map(|text| redis::from_redis_value(text).expect("text")).collect();
    assert!(!said.is_empty());
    server.kill();
    said.extend(lines.iter());
    assert!(said.iter().any(|line| line.contains("EVALSHA")), "{said:?}");
    let all = said.join("\n");
    for secret in [SECRET, OTHER_SECRET, KEY, OTHER_KEY, client] {
        // No part of it that would help to guess the rest.
        let part = &secret[secret.len().saturating_sub(16)..];
        assert!(!all.contains(part), "{part}");
    }
}

/// Everything that is kept, as text.
const DUMP: &str = "local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = key
  for _, text in ipairs(redis.call('HGETALL', key)) do all[#all + 1] = text end
end
return all";

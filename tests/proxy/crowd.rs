//! With more than a thousand connections each gives back, between two requests, what it needs for one, and nobody notices.

use std::fs;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::{Authority, handshake, write};
use crate::client::connect;
use crate::harness::{KEY, pair};
use crate::raw_client::RawClient;

const ROOM: &str = "server.max_connections_per_ip = 2000\n";

/// Connections that nothing comes over.
async fn crowd(address: SocketAddr) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..1100 {
        crowd.push(connect(address).await);
    }
    crowd
}

fn ask(method: &str, target: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{more}")
}

#[tokio::test]
async fn one_request_after_the_other_is_served_however_it_comes() {
    let (_mock, proxy) = pair(ROOM).await;
    let _crowd = crowd(proxy.address).await;
    let mut client = RawClient::connect(proxy.address).await;
    let (get, head) = (ask("GET", "/providers", "\r\n"), ask("HEAD", "/providers", "\r\n"));
    let body = r#"{"name":"one"}"#;
    let fields = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let post = ask("POST", "/provider-deployments", &fields) + body;
    let chunked = ask(
        "POST",
        "/provider-deployments",
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    let chunked = format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let (start, end) = get.split_at(get.len() / 2);
    for (pieces, answers) in [
        (vec![get.clone()], 1),
        (vec![get.clone()], 1),
        (vec![get.repeat(3)], 3),
        (vec![start.to_owned(), end.to_owned()], 1),
        (vec!["\r\n".to_owned(), get.clone()], 1),
        (vec![get.clone() + "\r\n", get.clone()], 2),
        (vec![get.clone() + start, end.to_owned()], 2),
        (vec![post.clone()], 1),
        (vec![post + &get], 2),
        (vec![chunked, get.clone()], 2),
        (vec![get], 1),
    ] {
        for piece in &pieces {
            assert!(client.send(piece.as_bytes()).await);
        }
        for _ in 0..answers {
            let answer = client.answer(false).await.unwrap_or_else(|| panic!("no answer to {pieces:?}"));
            assert!((200..=201).contains(&answer.status) && answer.whole, "{pieces:?}: {answer:?}");
        }
    }
    client.send(head.as_bytes()).await;
    assert_eq!(client.answer(true).await.map(|answer| answer.status), Some(200));
    client.send(ask("GET", "/providers", "connection: close\r\n\r\n").as_bytes()).await;
    let last = client.answer(false).await.expect("an answer");
    assert!(last.status == 200 && last.closes() && client.is_closed().await, "{last:?}");
}

#[tokio::test]
async fn who_closes_its_side_behind_a_later_request_is_answered_and_who_leaves_is_let_go() {
    let (_mock, proxy) = pair(ROOM).await;
    let _crowd = crowd(proxy.address).await;
    let get = ask("GET", "/providers", "\r\n");
    for asks_again in [true, false] {
        let mut client = RawClient::connect(proxy.address).await;
        client.send(get.as_bytes()).await;
        assert_eq!(client.answer(false).await.map(|answer| answer.status), Some(200));
        if asks_again {
            client.send(get.as_bytes()).await;
            client.finish().await;
            assert_eq!(client.answer(false).await.map(|answer| answer.status), Some(200));
        } else {
            client.finish().await;
        }
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_drain_says_farewell_to_who_waits_between_two_requests() -> io::Result<()> {
    let authority = Authority::new();
    let signed = authority.sign("proxy.test");
    let certificate = write("crowd.pem", &signed.certificate);
    let key = write("crowd.key", &signed.key);
    let tls = format!("{ROOM}server.tls = {{ certificate = {certificate:?}, private_key = {key:?} }}");
    let (_mock, proxy) = pair(&tls).await;
    let crowd = crowd(proxy.address).await;
    let mut stream = handshake(&proxy, &authority.client(&["http/1.1"])).await;
    for _ in 0..2 {
        stream.write_all(ask("GET", "/providers", "\r\n").as_bytes()).await?;
        assert!(stream.read(&mut [0; 16 * 1024]).await? > 0);
    }
    drop(crowd);
    let server = proxy.into_server();
    let drained = server.drain(Duration::ZERO, Duration::from_secs(20), pending());
    // Without a close_notify that would be an error.
    let mut rest = Vec::new();
    let (cut, rest) = tokio::join!(drained, stream.read_to_end(&mut rest));
    assert_eq!((cut, rest?), (0, 0));
    fs::remove_file(certificate)?;
    fs::remove_file(key)
}

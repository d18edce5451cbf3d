//! What a connection costs between two requests. A file of its own: nothing else may use memory meanwhile.

#![cfg(test)]

use std::alloc::System;
use std::net::SocketAddr;

use cap::Cap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[path = "support/client.rs"]
#[expect(dead_code, reason = "of other tests")]
mod client;
#[path = "support/harness.rs"]
#[expect(dead_code, reason = "of other tests")]
mod harness;

use harness::{KEY, pair};

/// Counts what is allocated, to the byte.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const ROOM: &str = "
    server.max_connections_per_ip = 3000
    clients.limit = { requests = 100000, window = '10s' }
";

/// So many connections, each of which has been served; and what each has allocated.
async fn served(address: SocketAddr, count: usize) -> (Vec<TcpStream>, usize) {
    let ask = format!("GET /providers?limit=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n");
    let before = ALLOCATOR.allocated();
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = TcpStream::connect(address).await.expect("a connection");
        connection.write_all(ask.as_bytes()).await.expect("sent");
        let mut answer = [0; 4096];
        let read = connection.read(&mut answer).await.expect("an answer");
        assert!(
            answer[..read].starts_with(b"HTTP/1.1 200 "),
            "{:?}",
            String::from_utf8_lossy(&answer[..read])
        );
        connections.push(connection);
    }
    (connections, (ALLOCATOR.allocated() - before) / count)
}

#[tokio::test]
async fn among_many_connections_one_that_waits_keeps_little() {
    let (_mock, proxy) = pair(ROOM).await;
    let (_one, _) = served(proxy.address, 1).await;
    let (_few, kept) = served(proxy.address, 1000).await;
    let (_crowd, _) = served(proxy.address, 100).await;
    let (_many, rested) = served(proxy.address, 500).await;
    println!("{kept} bytes for each of a thousand, {rested} for each of more");
    assert!(rested * 2 < kept && rested < 8 * 1024, "{kept}, {rested}");
}

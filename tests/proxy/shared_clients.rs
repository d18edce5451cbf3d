//! Replicas that share a store limit each client together, and each on its own while the store is away.

use std::time::Duration;

use metorial_proxy::domain::client_ip::ClientKey;
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::store::clients::ClientLimits;
use metorial_proxy::time::{Instant, sleep};

use crate::client::{Connection, Reply, connect, request};
use crate::harness::{KEY, Mock, Proxy, eventually};
use crate::redis::RedisServer;

const LIST: &str = "/provider-deployments";

/// Replicas behind a balancer, which says who the client is.
async fn replicas(mock: &Mock, server: &RedisServer, count: u32, limit: &str) -> Vec<Replica> {
    let toml = format!(
        "server.trusted_proxies = ['127.0.0.1']\nclients.limit = {limit}\n\
         store.url = '{}'\nstore.timeout = '5s'",
        server.url()
    );
    let mut replicas = Vec::new();
    for _ in 0..count {
        let proxy = Proxy::start(mock.url(), &toml);
        let connection = Connection::http1(connect(proxy.address).await).await;
        replicas.push(Replica { proxy, connection });
    }
    eventually("each knows of all", || {
        replicas.iter().all(|replica| replica.proxy.status().store.replicas == count)
    })
    .await;
    replicas
}

struct Replica {
    proxy: Proxy,
    connection: Connection,
}

impl Replica {
    async fn get(&mut self, client: &str) -> Reply {
        let key = format!("Bearer {KEY}");
        let fields = [("authorization", key.as_str()), ("x-forwarded-for", client)];
        let reply = self.connection.send(request("GET", LIST, &fields, "")).await.expect("an answer");
        assert!(matches!(reply.status, 200 | 429), "{reply:?}");
        reply
    }

    /// How many of `requests` it admits.
    async fn admits(&mut self, client: &str, requests: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..requests {
            admitted += usize::from(self.get(client).await.status == 200);
        }
        admitted
    }
}

/// Whether the second replica comes to know what `client` spent at the first.
async fn are_together(replicas: &mut [Replica], client: &str) -> bool {
    let [first, second] = replicas else { panic!("two replicas") };
    assert_eq!(first.admits(client, 600).await, 600);
    for _ in 0..300 {
        let reply = second.get(client).await;
        let left = reply.field("ratelimit").split("r=").nth(1).and_then(|rest| rest.split(';').next());
        if left.expect("what is left").parse::<u32>().expect("a number") < 400 {
            return true;
        }
        sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn a_client_gets_from_four_replicas_what_it_gets_from_one() {
    let (mock, server) = (Mock::start().await, RedisServer::start());
    let mut replicas = replicas(&mock, &server, 4, "{ requests = 400, window = '20s' }").await;
    let one = ClientLimits::new(Quota { requests: 400, window: Duration::from_secs(20) }, 1);
    let (mut of_one, mut of_four) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        for replica in &mut replicas {
            of_one += usize::from(one.check(ClientKey(7)).is_ok());
            of_four += replica.admits("198.51.100.7", 1).await;
            // Never more than 200 in a second, however slow the machine: ten times what flows back.
            sleep(Duration::from_millis(5)).await;
        }
    }
    println!("{of_four} from four, {of_one} from one");
    assert!(of_four * 100 <= of_one * 105 && of_four * 100 >= of_one * 95, "{of_four}, not {of_one}");
}

#[tokio::test]
async fn while_the_store_is_away_each_replica_limits_on_its_own() {
    let (mock, mut server) = (Mock::start().await, RedisServer::start());
    let mut replicas = replicas(&mock, &server, 2, "{ requests = 1000, window = '10m' }").await;
    let mut attempts = (1..=20).map(|nth| format!("198.51.100.{nth}"));
    assert!(are_together(&mut replicas, &attempts.next().expect("one")).await);
    server.kill();
    for replica in &mut replicas {
        let admitted = replica.admits("203.0.113.9", 1100).await;
        assert!((1000..1050).contains(&admitted), "{admitted}");
    }
    assert!(server.restart());
    for client in attempts {
        if are_together(&mut replicas, &client).await {
            return;
        }
    }
    panic!("they do not come together again");
}

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::edge::tls;
use crate::redis_server::RedisServer;

/// A link to `port`, connected as soon as that is possible.
struct Linked {
    link: RedisLink,
    news: broadcast::Receiver<News>,
    stop: CancellationToken,
}

impl Linked {
    fn to(place: RedisUrl) -> Self {
        Self::within(place, Duration::from_secs(5))
    }

    fn within(place: RedisUrl, timeout: Duration) -> Self {
        let tls = tls::store(None).expect("roots");
        let link = RedisLink::new(place, tls, timeout, vec!["news".into()]).expect("a link");
        let (news, stop) = (link.news(), CancellationToken::new());
        TaskTracker::new().spawn(link.clone().run(stop.clone()));
        Self { link, news, stop }
    }

    async fn hears(&mut self, expected: &News) {
        while self.news.recv().await.expect("news") != *expected {}
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn place(port: u16) -> RedisUrl {
    RedisUrl { tls: false, host: "127.0.0.1".into(), port, database: 0, username: None, password: None }
}

/// A stand-in for a server, in the test's own time: it says the same to whatever is asked.
struct StandIn {
    port: u16,
    /// It says nothing for now.
    stalled: watch::Sender<bool>,
}

impl StandIn {
    async fn saying(answer: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (stalled, watched) = watch::channel(false);
        TaskTracker::new().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                TaskTracker::new().spawn(Self::serve(stream, watched.clone(), answer));
            }
        });
        Self { port, stalled }
    }

    async fn serve(stream: TcpStream, mut stalled: watch::Receiver<bool>, answer: &'static str) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(words)) = lines.next_line().await {
            let words: usize = words.trim_start_matches('*').parse().expect("how many words");
            let mut command = String::new();
            for nth in 0..2 * words {
                let line = lines.next_line().await.expect("a command").expect("all of it");
                if nth == 1 {
                    command = line;
                }
            }
            let answer = match command.as_str() {
                "HELLO" => "%1\r\n+proto\r\n:3\r\n",
                "CLIENT" => "+OK\r\n",
                "SUBSCRIBE" => ">3\r\n+subscribe\r\n+news\r\n:1\r\n",
                _ => answer,
            };
            if stalled.wait_for(|stalled| !stalled).await.is_err()
                || write.write_all(answer.as_bytes()).await.is_err()
            {
                return;
            }
        }
    }
}

fn twice() -> Script {
    Script::new("return 2 * ARGV[1]")
}

async fn four(link: &RedisLink) -> Result<Value, Lost> {
    Link::run(link, &twice(), &["{t}".to_owned()], vec![b"2".to_vec()]).await
}

#[tokio::test]
async fn calls_are_answered_and_what_is_published_is_heard() {
    let server = RedisServer::start();
    let mut linked = Linked::to(place(server.port()));
    linked.hears(&News::Connected).await;
    assert_eq!(four(&linked.link).await, Ok(Value::Int(4)), "by its whole text");
    assert_eq!(four(&linked.link).await, Ok(Value::Int(4)), "by its digest");
    let told = linked.link.command(&[b"PUBLISH", b"news", b"hello"]).await;
    assert_eq!(told, Ok(Value::Int(1)));
    linked.hears(&News::Message { channel: "news".into(), payload: b"hello".to_vec() }).await;
    let refused = linked.link.command(&[b"NONSENSE"]).await.expect_err("no command");
    assert!(matches!(refused, Lost::Refused(_)));
    assert!(linked.link.is_connected());
}

#[tokio::test]
async fn a_lost_server_is_told_at_once_and_found_again() {
    let mut server = RedisServer::start();
    let mut linked = Linked::to(place(server.port()));
    linked.hears(&News::Connected).await;
    server.kill();
    linked.hears(&News::Disconnected).await;
    assert_eq!(four(&linked.link).await, Err(Lost::Unreachable));
    assert!(server.restart());
    linked.hears(&News::Connected).await;
    assert_eq!(four(&linked.link).await, Ok(Value::Int(4)));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_and_found_again() {
    let server = RedisServer::start();
    let mut linked = Linked::within(place(server.port()), Duration::from_secs(1));
    linked.hears(&News::Connected).await;
    server.signal("STOP");
    for _ in 0..MISSES {
        assert_eq!(four(&linked.link).await, Err(Lost::Late));
    }
    linked.hears(&News::Disconnected).await;
    server.signal("CONT");
    linked.hears(&News::Connected).await;
    assert_eq!(four(&linked.link).await, Ok(Value::Int(4)));
}

#[tokio::test]
async fn calls_that_go_unanswered_together_count_as_one() {
    let server = StandIn::saying("+OK\r\n").await;
    let mut linked = Linked::within(place(server.port), Duration::from_secs(1));
    linked.hears(&News::Connected).await;
    let link = linked.link.clone();
    let call = || link.command(&[b"SET", b"a", b"b"]);
    let many = || futures_util::future::join_all((0..50).map(|_| call()));
    server.stalled.send_replace(true);
    assert!(many().await.iter().all(|answer| *answer == Err(Lost::Late)));
    server.stalled.send_replace(false);
    assert_eq!(call().await, Ok(Value::Okay));
    assert!(link.is_connected() && linked.news.is_empty());
    server.stalled.send_replace(true);
    for _ in 0..MISSES {
        assert!(many().await.iter().all(|answer| *answer == Err(Lost::Late)));
    }
    linked.hears(&News::Disconnected).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_only_lets_read_is_asked_no_oftener_than_one_that_cannot_be_reached() {
    let server = StandIn::saying("-READONLY You can't write against a read only replica.\r\n").await;
    let mut linked = Linked::to(place(server.port));
    let start = Instant::now();
    for _ in 0..20 {
        linked.hears(&News::Connected).await;
        while linked.link.is_connected() {
            assert!(linked.link.command(&[b"SET", b"a", b"b"]).await.is_err());
        }
    }
    assert!(start.elapsed() > PAUSES.1 * 5, "{:?}", start.elapsed());
    // After one that was of use another is found soon, should its name lead back there at first.
    linked.hears(&News::Connected).await;
    sleep(PAUSES.1 * 2).await;
    let start = Instant::now();
    for _ in 0..3 {
        while linked.link.is_connected() {
            assert!(linked.link.command(&[b"SET", b"a", b"b"]).await.is_err());
        }
        linked.hears(&News::Connected).await;
    }
    assert!(start.elapsed() < PAUSES.1, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_user_that_may_not_call_scripts_by_digest_sends_them_whole() {
    let rights = ["--user", "metorial", "on", ">pass", "~*", "&*", "+@all", "-evalsha", "-script"];
    let server = RedisServer::with(&rights);
    let place =
        RedisUrl { username: Some("metorial".into()), password: Some("pass".into()), ..place(server.port()) };
    let mut linked = Linked::to(place.clone());
    linked.hears(&News::Connected).await;
    for _ in 0..2 {
        assert_eq!(four(&linked.link).await, Ok(Value::Int(4)));
    }
    let mut stranger = Linked::to(RedisUrl { password: Some("wrong".into()), ..place });
    assert_eq!(four(&stranger.link).await, Err(Lost::Unreachable));
    assert!(stranger.news.try_recv().is_err());
}

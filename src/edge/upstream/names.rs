//! The addresses of the API's name: asked for as connections are made, by one at a time, and kept for when nobody answers.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::Mutex;

use crate::time::{Instant, timeout};

/// What was found is used by whoever comes so soon after: many connections are made at once or none.
const FRESH: Duration = Duration::from_secs(1);
/// For how long the last addresses serve while the resolver fails. Whoever answers there has to have the certificate.
const KEPT: Duration = Duration::from_secs(600);
/// How long to wait for a resolver while there is something to go on with.
const PATIENCE: Duration = Duration::from_secs(1);

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Asks for the addresses of a host.
pub(super) type Lookup = Arc<dyn Fn(String, u16) -> Found + Send + Sync>;

/// The addresses of one host, shared by all workers.
#[derive(Clone)]
pub(super) struct Names(Arc<Shared>);

struct Shared {
    host: String,
    port: u16,
    lookup: Lookup,
    // Held while asking: a resolver that hangs has one thread of ours and not one for each request.
    known: Mutex<Option<Known>>,
}

struct Known {
    addresses: Vec<SocketAddr>,
    found: Instant,
    asked: Instant,
}

/// As the operating system resolves names.
pub(super) fn system() -> Lookup {
    Arc::new(|host, port| Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) }))
}

impl Names {
    pub(super) fn new(host: String, port: u16, lookup: Lookup) -> Self {
        Self(Arc::new(Shared { host, port, lookup, known: Mutex::default() }))
    }

    /// Whether both know the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The addresses, never none.
    pub(super) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let Shared { host, port, lookup, known } = &*self.0;
        let mut known = known.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.asked.elapsed() < FRESH) {
            return Ok(known.addresses.clone());
        }
        let asking = lookup(host.clone(), *port);
        let kept = known.as_mut().filter(|known| known.found.elapsed() < KEPT);
        let answer = match &kept {
            Some(_) => {
                timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            None => asking.await,
        };
        let now = Instant::now();
        match (answer, kept) {
            (Ok(addresses), _) if !addresses.is_empty() => {
                *known = Some(Known { addresses: addresses.clone(), found: now, asked: now });
                Ok(addresses)
            }
            (answer, Some(kept)) => {
                let error = answer.err().map_or("no address".to_owned(), |error| error.to_string());
                tracing::warn!(host, error, "upstream's name is not resolved: its last addresses are used");
                kept.asked = now;
                Ok(kept.addresses.clone())
            }
            (Ok(_), None) => Err(io::Error::other(format!("{host} has no address"))),
            (Err(error), None) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::time::sleep;

    fn addresses(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([192, 0, 2, last], 443))]
    }

    /// Names whose nth answer is `answer(n)`, and how often they were asked for.
    fn names(answer: impl Fn(u64) -> Found + Send + Sync + 'static) -> (Names, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let lookup = Arc::new(move |_, _| answer(count.fetch_add(1, Ordering::Relaxed)));
        (Names::new("api.test".to_owned(), 443, lookup), asked)
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_name_is_asked_for_once_by_many_and_again_a_little_later() {
        let (names, asked) = names(|nth| {
            Box::pin(async move {
                sleep(Duration::from_millis(100)).await;
                Ok(addresses(nth as u8))
            })
        });
        let (one, two) = tokio::join!(names.addresses(), names.addresses());
        assert_eq!((one.expect("found"), two.expect("found")), (addresses(0), addresses(0)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        sleep(FRESH).await;
        assert_eq!(names.addresses().await.expect("found"), addresses(1));
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn the_last_addresses_serve_while_the_resolver_fails_or_hangs_and_not_for_ever() {
        let (names, asked) = names(|nth| match nth {
            0 => Box::pin(async { Ok(addresses(1)) }),
            1 => Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }),
            2 => Box::pin(async { Ok(Vec::new()) }),
            3 => Box::pin(std::future::pending()),
            4 => Box::pin(async { Ok(addresses(2)) }),
            _ => Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }),
        });
        for _ in 0..4 {
            assert_eq!(names.addresses().await.expect("kept"), addresses(1));
            assert_eq!(names.addresses().await.expect("kept"), addresses(1), "and nobody is asked at once");
            sleep(FRESH).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        assert_eq!(names.addresses().await.expect("found"), addresses(2), "it resolves again");
        sleep(KEPT).await;
        assert!(names.addresses().await.is_err());
    }

    #[tokio::test(flavor = "local")]
    async fn a_name_without_an_address_is_an_error_that_says_so() {
        let (names, _) = names(|_| Box::pin(async { Ok(Vec::new()) }));
        assert_eq!(names.addresses().await.expect_err("none").to_string(), "api.test has no address");
    }
}

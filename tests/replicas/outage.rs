//! What can happen to the server or to the way to it, and that neither callers nor the API suffer from it.

use std::time::Duration;

use metorial_proxy::domain::quota::Quota;

use crate::fleet::{Fleet, assert_tells, is_partitioned};
use crate::harness::eventually;
use crate::load::{EVEN, Load};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// The server is gone, and comes back empty.
    Killed,
    /// It neither answers nor closes anything.
    Stalled,
    /// It forgets everything, and is there all the time.
    Flushed,
    /// It is gone, and comes back with what it knew some time before.
    Rewound,
    /// It has no memory left, which is none of the budgets' business.
    Full,
    /// It is busy with somebody's script.
    Busy,
    /// So many replicas have no connection to it.
    Cut(usize),
    /// So many replicas have one that carries nothing.
    Swallowed(usize),
}

impl Outage {
    pub(crate) const ALL: [Self; 10] = [
        Self::Killed,
        Self::Stalled,
        Self::Flushed,
        Self::Rewound,
        Self::Full,
        Self::Busy,
        Self::Cut(1),
        Self::Cut(2),
        Self::Swallowed(1),
        Self::Swallowed(2),
    ];

    /// How many replicas are on their own meanwhile.
    pub(crate) fn concerns(self, replicas: usize) -> usize {
        match self {
            Self::Flushed | Self::Full => 0,
            Self::Cut(n) | Self::Swallowed(n) => n,
            _ => replicas,
        }
    }

    pub(crate) async fn begin(self, fleet: &Fleet) {
        match self {
            Self::Killed | Self::Rewound => fleet.redis(|redis| redis.kill()).await,
            Self::Stalled => fleet.redis(|redis| redis.signal("STOP")).await,
            Self::Flushed => drop(fleet.command(&["FLUSHALL"]).await),
            Self::Full => drop(fleet.command(&["CONFIG", "SET", "maxmemory", "1"]).await),
            Self::Busy => {
                fleet.command(&["CONFIG", "SET", "busy-reply-threshold", "1"]).await;
                fleet
                    .redis(|redis| {
                        let client = redis::Client::open(redis.url()).expect("a client");
                        let mut connection = client.get_connection().expect("a connection");
                        let endless = redis::cmd("EVAL").arg("while true do end").arg(0).get_packed_command();
                        connection.send_packed_command(&endless).expect("sent");
                    })
                    .await;
            }
            Self::Cut(n) => fleet.relays[..n].iter().for_each(|relay| relay.cut()),
            Self::Swallowed(n) => fleet.relays[..n].iter().for_each(|relay| relay.stall()),
        }
    }

    pub(crate) async fn end(self, fleet: &Fleet) {
        match self {
            Self::Killed | Self::Rewound => assert!(fleet.redis(|redis| redis.restart()).await),
            Self::Stalled => fleet.redis(|redis| redis.signal("CONT")).await,
            Self::Flushed => {}
            Self::Full => drop(fleet.command(&["CONFIG", "SET", "maxmemory", "0"]).await),
            Self::Busy => drop(fleet.command(&["SCRIPT", "KILL"]).await),
            Self::Cut(_) | Self::Swallowed(_) => fleet.relays.iter().for_each(|relay| relay.mend()),
        }
    }
}

/// Lets it happen for so long and end, and sees to it that the right replicas know.
pub(crate) async fn pass(fleet: &Fleet, outage: Outage, length: Duration) {
    outage.begin(fleet).await;
    let alone = outage.concerns(fleet.proxies.len());
    let known = async {
        for proxy in &fleet.proxies[..alone] {
            eventually("it knows that it is alone", || is_partitioned(proxy)).await;
            assert_tells(proxy, true).await;
        }
    };
    tokio::join!(known, metorial_proxy::time::sleep(length));
    for proxy in &fleet.proxies[alone..] {
        eventually("the others are not", || !is_partitioned(proxy)).await;
    }
    outage.end(fleet).await;
    fleet.settled().await;
    for proxy in &fleet.proxies {
        assert_tells(proxy, false).await;
    }
}

#[tokio::test]
async fn neither_callers_nor_the_api_suffer_from_outages_of_the_server_or_of_the_way_to_it() {
    let quota = Quota { requests: 120, window: Duration::from_secs(2) };
    let fleet = Fleet::start(quota, 4).await;
    let load = Load::start(&fleet.mock, quota, fleet.proxies.iter().map(|proxy| proxy.address), &EVEN);
    fleet.windows(1.0).await;
    for (outage, windows) in [(Outage::Cut(2), 1.2), (Outage::Killed, 0.5), (Outage::Stalled, 1.2)] {
        pass(&fleet, outage, quota.window.mul_f64(windows)).await;
        fleet.windows(1.0).await;
        assert_eq!(fleet.mock.handle.refused(), 0, "{outage:?}");
    }
    fleet.windows(0.1).await;
    let outcome = load.finish(&fleet.mock).await;
    outcome.assert_clean();
    assert!(outcome.used >= 0.8, "{outcome:?}");
}

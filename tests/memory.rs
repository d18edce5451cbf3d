//! What a tracked client costs. A file of its own: nothing else may use memory meanwhile.

use std::alloc::System;
use std::net::Ipv6Addr;
use std::time::Duration;

use cap::Cap;
use metorial_proxy::domain::client_ip::{ClientIp, ClientKey};
use metorial_proxy::domain::quota::Quota;
use metorial_proxy::store::clients::ClientLimits;
use metorial_proxy::time::sleep;

/// Counts what is allocated, to the byte.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const CLIENTS: usize = 1_000_000;

fn prefix(nth: usize) -> ClientKey {
    let bits = (0x2001_0db8_0000_0000 + nth as u128) << 64;
    ClientIp::new(Ipv6Addr::from_bits(bits).into()).key(64)
}

#[tokio::test(start_paused = true)]
async fn a_million_prefixes_cost_little_each_and_the_memory_comes_back() {
    let limits = ClientLimits::new(Quota::PER_IP, CLIENTS);
    let floor = ALLOCATOR.allocated();
    let (mut most, mut worst) = (0, 0);
    for nth in 0..CLIENTS {
        // Deep in debt, or it would be forgotten as soon as there is no room.
        limits.penalise(prefix(nth), 999);
        let allocated = ALLOCATOR.allocated() - floor;
        most = most.max(allocated);
        if nth >= 10_000 {
            worst = worst.max(allocated / nth);
        }
    }
    let tracked = limits.tracked();
    println!(
        "{} bytes per tracked client of {tracked}, {worst} at the worst on the way there",
        most / tracked
    );
    assert!(tracked > CLIENTS * 98 / 100, "{tracked}");
    assert!(most / tracked <= 40 && worst <= 64, "{most} bytes, {worst}");

    // Twice as many: there is a ceiling. (What the harness keeps of the line above is counted, too.)
    for nth in CLIENTS..2 * CLIENTS {
        limits.penalise(prefix(nth), 999);
    }
    assert!(ALLOCATOR.allocated() - floor < most + 4096, "{} {most}", ALLOCATOR.allocated() - floor);

    sleep(Duration::from_secs(60)).await;
    limits.forget_idle();
    assert_eq!(limits.tracked(), 1, "the network that the second million was folded into still owes");
    let left = ALLOCATOR.allocated() - floor;
    assert!(left < 4096, "{left} bytes are left");
}

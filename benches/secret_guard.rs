//! What it costs to search an answer for the secret.

#![expect(clippy::expect_used, reason = "a benchmark that measures something else must not go on")]

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use metorial_proxy::domain::secret_guard::SecretGuard;
use mimalloc::MiMalloc;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const SECRET: &str = "metorial_sk_4mXq9Zt2LhVb8RsK1wNcYp6DgJfE3aTu";

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    let guard = SecretGuard::new([SECRET]).expect("a guard");
    let echoed = format!("{}{SECRET}", json(20_000, ""));
    assert!(guard.scan().push(echoed.into()).is_err(), "the secret is found");
    for (name, body) in [
        ("20 KB of JSON", json(20_000, "")),
        ("20 KB of JSON with escapes", json(20_000, "https://example.com/?q=a%20b%2Fc")),
        ("20 KB of escapes alone", "%7B".repeat(20_000 / 3)),
        ("20 KB of candidates", SECRET[..8].repeat(20_000 / 8)),
        ("64 KB of JSON", json(64_000, "")),
    ] {
        scan(&mut criterion, &guard, name, body.into());
    }
    criterion.final_summary();
}

fn scan(criterion: &mut Criterion, guard: &SecretGuard, name: &str, body: Bytes) {
    let mut group = criterion.benchmark_group("secret guard");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let mut scan = guard.scan();
            let passed = scan.push(body.clone()).expect("the secret is not there").len();
            let held = scan.finish().len();
            assert_eq!(passed + held, body.len());
        });
    });
    group.finish();
}

/// A list page of about `length` bytes, with `text` in each of its items.
fn json(length: usize, text: &str) -> String {
    let mut page = String::from("{\"object\":\"list\",\"items\":[");
    for at in 0.. {
        page.push_str(&format!(
            "{{\"object\":\"provider\",\"id\":\"pro_{at:016}\",\"name\":\"Provider {at}\",\"description\":\"{text}\",\
             \"metadata\":{{}},\"created_at\":\"2026-01-01T00:00:00.000Z\"}},"
        ));
        if page.len() >= length {
            break;
        }
    }
    page.push_str("],\"pagination\":{\"has_more_before\":false,\"has_more_after\":true}}");
    page
}

//! What it costs to read a target and to name the page that answers it.

#![expect(clippy::expect_used, reason = "a benchmark that measures something else must not go on")]

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use http::uri::PathAndQuery;
use metorial_proxy::domain::page_key::{PageKey, Parts};
use metorial_proxy::domain::target::Target;
use mimalloc::MiMalloc;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    let queries = [
        ("no query", String::new()),
        ("5 parameters", "limit=20&order=desc&status[0]=active&status[1]=new&search=web%20search".to_owned()),
        ("50 parameters", parameters(50)),
    ];
    for (name, query) in &queries {
        page_key(&mut criterion, name, query);
    }
    for (name, query) in &queries {
        target(&mut criterion, name, &format!("/providers?{query}"));
    }
    target(
        &mut criterion,
        "a key among 5 parameters",
        "/providers?limit=20&a=1&key=metorial_pk_0123&b=2&c=3",
    );
    criterion.final_summary();
}

/// Not in the order of their names.
fn parameters(count: usize) -> String {
    let pairs: Vec<String> = (0..count).map(|at| format!("name_{:02}=value_{at}", at * 7 % count)).collect();
    pairs.join("&")
}

fn page_key(criterion: &mut Criterion, name: &str, query: &str) {
    let key = |query: &str| {
        PageKey::of(&Parts {
            environment: "production",
            generation: 3,
            path: "/providers",
            query,
            fields: &[Some(b"2026-01-01-magnetar"), Some(b"application/json")],
        })
    };
    let mut reversed: Vec<&str> = query.split('&').collect();
    reversed.sort_by_key(|pair| std::cmp::Reverse(pair.split(['[', '=']).next()));
    assert_eq!(key(query), key(&reversed.join("&")), "the order of parameters does not matter");
    criterion.bench_function(&format!("page key/{name}"), |bencher| bencher.iter(|| key(black_box(query))));
}

fn target(criterion: &mut Criterion, name: &str, target: &str) {
    let target = PathAndQuery::try_from(target.trim_end_matches('?')).expect("a target");
    let (read, extracted) = Target::parse(&target, "").expect("reads one way");
    assert_eq!(extracted.key.is_some(), name.starts_with("a key"));
    assert_eq!(read.path(), "/providers");
    criterion.bench_function(&format!("target/{name}"), |bencher| {
        bencher.iter(|| Target::parse(black_box(&target), "").is_ok());
    });
}

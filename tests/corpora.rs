//! What the fuzzers of `fuzz/` began with and what they have found since, against the same properties.

#![cfg(test)]

use std::fs;
use std::path::Path;

#[expect(unreachable_pub, reason = "the fuzzers, for whom they are public, are another crate's")]
#[path = "../fuzz/src/properties.rs"]
mod properties;

/// Each file of a corpus; a property that does not hold panics.
fn every_file_of(corpus: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        // The test's output is shown where it fails: the last file named is the one.
        println!("{}", file.display());
        property(&fs::read(&file).expect("it can be read"));
    }
}

macro_rules! corpora {
    ($($name:ident,)+) => {
        $(#[test]
        fn $name() {
            every_file_of(stringify!($name), properties::$name);
        })+
    };
}

corpora! {
    client_ip,
    configuration,
    page_key,
    proxy_header,
    ratelimit,
    secret_guard,
    target,
}

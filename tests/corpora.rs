//! What the fuzzers of `fuzz/` began with and what they have found since, against the same properties; and each a little
//! changed, always in the same ways, for who has no fuzzer.

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
        let mut input = fs::read(&file).expect("it can be read");
        property(&input);
        let mut random = fastrand::Rng::with_seed(0);
        for nth in 0..MUTATIONS {
            mutate(&mut input, &mut random);
            println!("{nth}: {:?}", input.escape_ascii().to_string());
            property(&input);
        }
    }
}

/// Of each file, one after the other.
const MUTATIONS: usize = 30;

fn mutate(input: &mut Vec<u8>, random: &mut fastrand::Rng) {
    // What parsers have an opinion of.
    const TELLING: &[u8] = b"\0\t\r\n \"#%&+,-./0:;=?@[\\]_az|~\x7f\xff";
    let at = random.usize(..=input.len());
    let byte = TELLING[random.usize(..TELLING.len())];
    match random.u8(..4) {
        0 => input.insert(at, byte),
        1 if at < input.len() => drop(input.remove(at)),
        2 if at < input.len() => input[at] = byte,
        _ => {
            let end = random.usize(at..=input.len());
            let piece = input[at..end.min(at + 30)].to_vec();
            let to = random.usize(..=input.len());
            input.splice(to..to, piece);
        }
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
    answers,
    client_ip,
    configuration,
    frames,
    page_key,
    proxy_header,
    ratelimit,
    requests,
    secret_guard,
    target,
}

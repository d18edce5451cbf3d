//! File descriptors: as many as the system grants, and a part of them for more than callers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The process's own: stderr, the log, the state file, listeners, the admin port's first connections.
const OWN: u64 = 16;
/// Of a worker's runtime and its sockets.
const PER_WORKER: u64 = 8;

/// Raises the limit of this process as far as it may, and returns it.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where it may not be raised, what it was stands.
    setrlimit(Resource::Nofile, raised).ok();
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of `wanted` connections there can be with `limit` descriptors: the rest is upstream's, which needs at most one for
/// each of `in_flight` requests. A caller whose connection stands and whose request cannot go on is worse off than one that
/// is turned away.
pub fn connections(limit: u64, wanted: usize, in_flight: usize, workers: usize) -> usize {
    let room = limit.saturating_sub(OWN + PER_WORKER * workers as u64);
    let callers = room.saturating_sub(in_flight as u64).max(room / 4 * 3).max(1);
    wanted.min(usize::try_from(callers).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_get_what_upstream_cannot_need_and_three_quarters_in_any_case() {
        assert_eq!(connections(1_048_576, 20_000, 4096, 2), 20_000);
        assert_eq!(connections(u64::MAX, 20_000, 4096, 2), 20_000);
        assert_eq!(connections(20_032, 20_000, 4096, 2), 15_904);
        assert_eq!(connections(1024, 20_000, 4096, 2), 744);
        assert_eq!(connections(64, 20_000, 4096, 2), 24);
        assert_eq!(connections(64, 10, 4096, 2), 10);
        assert_eq!(connections(8, 20_000, 4096, 2), 1, "one in any case");
    }

    #[test]
    fn the_limit_is_what_the_system_grants() {
        assert_eq!(Some(raise()), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}

//! `store.state_file`: what was spent, kept while the process is not there.
//!
//! Written every second and when stopping, always whole (a new file takes the old one's place), read on start; a lock beside it
//! keeps a second proxy from doing the same. It holds counts and names, no keys. Ages are bridged by the wall clock, the only one
//! that both processes share; should it have stepped back, they count as if no time had passed.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::quota::{Algorithm, Plan, Quota};
use crate::store::limits::SpentBudget;
use crate::time::unix_now;

/// What was spent before this process began.
#[derive(Debug, Default)]
pub struct Past {
    /// By budget.
    pub budgets: Vec<SpentBudget>,
    /// How long ago it stood so.
    pub ago: Duration,
    /// The last process did not stop by itself: what it spent at the very end nobody wrote down.
    pub unclean: bool,
}

impl Past {
    /// Takes it that what was not written down was spent at the pace that each plan grants, of `name` in any case.
    pub fn assume(&mut self, name: &str, plan: Plan) {
        if self.budgets.iter().all(|budget| budget.name != name) {
            let (name, users) = (name.to_owned(), Vec::new());
            self.budgets.push(SpentBudget { name, users, plan, spent: Vec::new(), gate: Duration::ZERO });
        }
        for SpentBudget { plan: Plan { quota, .. }, spent, .. } in &mut self.budgets {
            let share = UNSEEN.as_secs_f64() / quota.window.as_secs_f64();
            spent.push((Duration::ZERO, (f64::from(quota.requests) * share.min(1.0)).ceil() as u32));
        }
    }
}

/// How often a running proxy writes the file.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// For how long a process may go on after it last wrote: once more the interval, for a disk that is slow.
const UNSEEN: Duration = Duration::from_secs(2 * INTERVAL.as_secs());

/// Of another format nothing is read.
const FORMAT: u32 = 1;
/// A larger file is none of ours.
const LARGEST: u64 = 64 * 1024 * 1024;
/// No quota of a configuration has a longer window.
const DAY: u64 = 24 * 3600;

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    /// Unix time.
    saved_at: u64,
    /// Nothing was spent after that.
    #[serde(default)]
    last: bool,
    budgets: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    environments: Vec<String>,
    requests: u32,
    window_ms: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    token_bucket: bool,
    /// Milliseconds ago, and how many, oldest first.
    spent: Vec<(u64, u32)>,
    gate_ms: u64,
}

impl Entry {
    fn of(budget: &SpentBudget) -> Self {
        Self {
            name: budget.name.clone(),
            environments: budget.users.clone(),
            requests: budget.plan.quota.requests,
            window_ms: millis(budget.plan.quota.window),
            token_bucket: budget.plan.algorithm == Algorithm::TokenBucket,
            spent: budget.spent.iter().map(|(age, n)| (millis(*age), *n)).collect(),
            gate_ms: millis(budget.gate),
        }
    }

    fn read(self) -> Result<SpentBudget, String> {
        if self.requests == 0 || !(1..=DAY * 1000).contains(&self.window_ms) {
            return Err(format!("budget {:?} has no possible limit", self.name));
        }
        let quota = Quota { requests: self.requests, window: Duration::from_millis(self.window_ms) };
        let algorithm = if self.token_bucket { Algorithm::TokenBucket } else { Algorithm::Window };
        Ok(SpentBudget {
            name: self.name,
            users: self.environments,
            plan: Plan { quota, algorithm },
            // More than fits was never spent, and no gate was shut for longer than a window.
            spent: (self.spent.into_iter())
                .map(|(age, n)| (Duration::from_millis(age), n.min(self.requests)))
                .collect(),
            gate: Duration::from_millis(self.gate_ms.min(self.window_ms)),
        })
    }
}

/// Reads the file; `None` where there is none yet.
///
/// # Errors
/// Why what it says cannot be had.
pub fn read(path: &Path) -> Result<Option<Past>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).map_err(|error| error.to_string())?;
    let state: State = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if state.format != FORMAT {
        return Err(format!("it has format {}, this version reads {FORMAT}", state.format));
    }
    let budgets = state.budgets.into_iter().map(Entry::read).collect::<Result<_, _>>()?;
    // Both moments are cut to whole seconds: less than the true age is on the safe side.
    let ago = Duration::from_secs(unix_now().saturating_sub(state.saved_at).saturating_sub(1));
    let ago = if state.last { ago } else { ago.saturating_sub(UNSEEN) };
    Ok(Some(Past { budgets, ago, unclean: !state.last }))
}

/// Takes the file for this process, for as long as the handle lives.
///
/// # Errors
/// Why it cannot be had, as a sentence.
pub fn lock(path: &Path) -> Result<File, String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options().create(true).append(true).open(&name).map_err(|error| cannot(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("{} is kept by another instance: stop it, or name another file", path.display()))
        }
        Err(TryLockError::Error(error)) => Err(cannot(path, &error)),
    }
}

/// What is said of a file that cannot be written.
pub fn cannot(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    format!(
        "{path} cannot be written: {error}; it has to be in a folder that is there, may be written to and has room left"
    )
}

/// Puts a new file in the old one's place. `last`: nothing is spent after it, and it is to outlive the machine, too.
///
/// # Errors
/// Why it cannot: the old file is as it was.
pub fn write(path: &Path, budgets: &[SpentBudget], last: bool) -> io::Result<()> {
    let state = State {
        format: FORMAT,
        saved_at: unix_now(),
        last,
        budgets: budgets.iter().map(Entry::of).collect(),
    };
    let mut text = serde_json::to_vec(&state)?;
    text.push(b'\n');
    static NTH: AtomicU64 = AtomicU64::new(0);
    let beside = beside(path, NTH.fetch_add(1, Ordering::Relaxed));
    let mut file = File::create(&beside)?;
    let written = file.write_all(&text).and_then(|()| if last { file.sync_data() } else { Ok(()) });
    if let Err(error) = written.and_then(|()| std::fs::rename(&beside, path)) {
        // The first error is the one to tell.
        std::fs::remove_file(&beside).ok();
        return Err(error);
    }
    Ok(())
}

/// In the same folder, so that it can take the file's place in one step; nobody else's.
fn beside(path: &Path, nth: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{nth}.new", std::process::id()));
    PathBuf::from(name)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("metorial-proxy-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_left_behind() {
        let path = scratch("state.json");
        assert!(read(&path).expect("no file is no fault").is_none());
        let budgets = vec![SpentBudget {
            name: "environment:secret:0123abcd".into(),
            users: vec!["production".into(), "staging".into()],
            plan: Plan { quota: Quota::PRODUCTION, algorithm: Algorithm::TokenBucket },
            spent: vec![(Duration::from_secs(500), 7), (Duration::from_millis(1500), 2)],
            gate: Duration::from_secs(3),
        }];
        write(&path, &[], false).expect("written");
        assert!(read(&path).expect("read").expect("there").unclean, "it was not the last word");
        write(&path, &budgets, true).expect("written");
        let past = read(&path).expect("read").expect("there");
        assert_eq!(past.budgets, budgets);
        assert!(past.ago <= Duration::from_secs(60) && !past.unclean);
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let files = std::fs::read_dir(std::env::temp_dir()).expect("a folder").flatten();
        let ours = files.filter(|file| file.file_name().to_string_lossy().starts_with(&name));
        assert_eq!(ours.count(), 1);
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_file_is_one_processs_at_a_time() {
        let path = scratch("locked.json");
        let lock = super::lock(&path).expect("ours");
        assert!(super::lock(&path).expect_err("taken").contains("another instance"));
        drop(lock);
        drop(super::lock(&path).expect("free again"));
        std::fs::remove_file(path.with_extension("json.lock")).expect("removed");
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error_that_says_why() {
        let path = scratch("nonsense.json");
        let budget = r#"{"name": "b", "environments": [], "requests": 1, "window_ms": 99999999999, "spent": [], "gate_ms": 0}"#;
        for (text, why) in [
            (String::new(), "EOF"),
            ("{}".into(), "format"),
            (r#"{"format": 9, "saved_at": 0, "budgets": []}"#.into(), "format 9"),
            (format!(r#"{{"format": 1, "saved_at": 0, "budgets": [{budget}]}}"#), "\"b\""),
        ] {
            std::fs::write(&path, &text).expect("written");
            let error = read(&path).expect_err("nonsense");
            assert!(error.contains(why), "{text}: {error}");
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(write(&scratch("no-such-folder").join("state.json"), &[], true).is_err());
    }
}

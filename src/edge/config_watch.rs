//! Notices when the files change that the configuration was made of.
//!
//! The kernel tells of changes in the folders that the files are in: a file that takes another's place, and Kubernetes'
//! `..data` link that does so for all files of a volume at once, change the folder, while a watch on the file itself would go
//! dead with it. What it tells is only a reason to look: what counts is whether the content is another. A slow look from
//! time to time finds what it does not tell of: network file systems, a folder that was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior};

use crate::time::{Instant, timeout};

/// How often the files are looked at although nothing is told of them.
const POLL: Duration = Duration::from_secs(30);
/// Several files are rarely written at once: so long it has to be quiet,
const QUIET: Duration = Duration::from_millis(200);
/// but where it never is, they are looked at all the same.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is longer is none of our files, which are refused when they are read.
const LONGEST: u64 = 16 * 1024 * 1024;

/// SHA-256 of what is in a file; `None`: it cannot be read, or is no file that could be read twice.
type Print = Option<[u8; 32]>;

/// What files held at a moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Prints(BTreeMap<PathBuf, Print>);

impl Prints {
    /// Of these files now.
    pub fn of(files: &[PathBuf]) -> Self {
        Self(files.iter().map(|path| (path.clone(), print(path))).collect())
    }
}

/// The files that the configuration was made of.
pub struct ConfigWatch {
    prints: Prints,
    folders: Option<Arc<Mutex<Folders>>>,
    rung: Arc<Notify>,
    poll: Interval,
}

/// The folders that the kernel tells of.
struct Folders {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl ConfigWatch {
    /// Watches the files that were `seen`; what has changed since then has changed.
    pub async fn new(seen: Prints) -> Self {
        let rung = Arc::new(Notify::new());
        let bell = rung.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| may_change(event.kind)) {
                bell.notify_one();
            }
        });
        let folders = match watcher {
            Ok(watcher) => Some(Arc::new(Mutex::new(Folders { watcher, watched: BTreeSet::new() }))),
            Err(error) => {
                tracing::warn!(%error, "changes of files are noticed after 30 seconds only");
                None
            }
        };
        let mut poll = tokio::time::interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Self { prints: seen, folders, rung, poll };
        watch.watch_folders().await;
        watch.rung.notify_one();
        watch
    }

    /// Watches these files from now on; those that were watched are compared with what they were.
    pub async fn follow(&mut self, files: &[PathBuf]) {
        let Prints(prints) = &mut self.prints;
        prints.retain(|path, _| files.contains(path));
        let new: Vec<PathBuf> = files.iter().filter(|path| !prints.contains_key(*path)).cloned().collect();
        prints.extend(new.iter().map(|path| (path.clone(), None)));
        // First the watch and then the look, or a change between them is told by neither.
        self.watch_folders().await;
        let Prints(new) = look_at(new).await;
        self.prints.0.extend(new);
    }

    /// Waits until a file holds something else than before. Dropped early, nothing is missed.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = self.rung.notified() => self.calm().await,
                _ = self.poll.tick() => {}
            }
            if self.look().await {
                return;
            }
        }
    }

    /// Looks at the files: what they hold now is what they are compared with. Whether it is something else than before.
    pub async fn look(&mut self) -> bool {
        self.watch_folders().await;
        let prints = look_at(self.files()).await;
        let changed = prints != self.prints;
        self.prints = prints;
        changed
    }

    fn files(&self) -> Vec<PathBuf> {
        self.prints.0.keys().cloned().collect()
    }

    async fn calm(&self) {
        let since = Instant::now();
        while since.elapsed() < PATIENCE && timeout(QUIET, self.rung.notified()).await.is_ok() {}
    }

    /// Once more also where a folder is watched already: another may be in its place.
    async fn watch_folders(&self) {
        let (Some(folders), files) = (self.folders.clone(), self.files()) else { return };
        let watch = move || folders.lock().watch(&files);
        blocking(watch).await.unwrap_or_default();
    }
}

impl Folders {
    fn watch(&mut self, files: &[PathBuf]) {
        let folders: BTreeSet<PathBuf> = files.iter().flat_map(|file| folders(file)).collect();
        for folder in self.watched.difference(&folders) {
            // It may be gone.
            self.watcher.unwatch(folder).ok();
        }
        for folder in &folders {
            if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive)
                && !self.watched.contains(folder)
            {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "changes in this folder are noticed after 30 seconds only");
            }
        }
        self.watched = folders;
    }
}

/// Whether content may be another after it. That somebody reads a file is told too, and we do.
fn may_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The folder that a file is named in, and, where that is a link, the one that it is in.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> {
    let parent = |file: &Path| match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Some(parent.to_owned()),
        Some(_) => Some(PathBuf::from(".")),
        None => None,
    };
    let real = fs::canonicalize(file).ok();
    [parent(file), real.as_deref().and_then(parent)].into_iter().flatten()
}

async fn look_at(files: Vec<PathBuf>) -> Prints {
    blocking(move || Prints::of(&files)).await.unwrap_or_else(|| Prints(BTreeMap::new()))
}

fn print(path: &Path) -> Print {
    // A pipe can be read but once, by whoever needs what is in it.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    let digest = digest::digest(&digest::SHA256, &text);
    digest.as_ref().try_into().ok()
}

/// Off the runtime's thread: a network file system may take its time. `None`: it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder of the test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("metorial-proxy-{}-{name}", std::process::id()));
            fs::remove_dir_all(&folder).ok();
            fs::create_dir(&folder).expect("a folder");
            Self(folder)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, text).expect("written");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    async fn watching(files: &[&PathBuf]) -> ConfigWatch {
        ConfigWatch::new(Prints::of(&files.iter().map(|file| (*file).clone()).collect::<Vec<_>>())).await
    }

    /// Well before the slow look.
    async fn notices(watch: &mut ConfigWatch) -> bool {
        timeout(POLL / 3, watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_file_that_is_written_replaced_removed_or_made_is_noticed() {
        let folder = Folder::new("watch-files");
        let (one, two) = (folder.write("one", "1"), folder.0.join("two"));
        let mut watch = watching(&[&one, &two]).await;
        folder.write("one", "2");
        assert!(notices(&mut watch).await, "written");
        let new = folder.write("new", "3");
        fs::rename(new, &one).expect("renamed");
        assert!(notices(&mut watch).await, "replaced");
        fs::remove_file(&one).expect("removed");
        assert!(notices(&mut watch).await, "removed");
        folder.write("two", "1");
        assert!(notices(&mut watch).await, "made");
    }

    #[tokio::test]
    async fn what_changed_before_the_watch_began_is_noticed_too() {
        let folder = Folder::new("watch-early");
        let seen = Prints::of(&[folder.write("file", "1")]);
        folder.write("file", "2");
        assert!(notices(&mut ConfigWatch::new(seen).await).await);
    }

    #[tokio::test]
    async fn the_link_that_kubernetes_swaps_is_noticed_each_time() {
        let folder = Folder::new("watch-volume");
        let at = |name: &str| folder.0.join(name);
        folder.write("..2026_1/key", "1");
        symlink("..2026_1", at("..data")).expect("a link");
        symlink("..data/key", at("key")).expect("a link");
        let mut watch = watching(&[&at("key")]).await;
        for generation in 2..5 {
            let name = format!("..2026_{generation}");
            folder.write(&format!("{name}/key"), &generation.to_string());
            symlink(&name, at("..data_tmp")).expect("a link");
            fs::rename(at("..data_tmp"), at("..data")).expect("swapped");
            fs::remove_dir_all(at(&format!("..2026_{}", generation - 1))).expect("removed");
            assert!(notices(&mut watch).await, "{generation}");
        }
    }

    #[tokio::test]
    async fn what_changes_nothing_is_no_change() {
        let folder = Folder::new("watch-nothing");
        let file = folder.write("file", "1");
        let mut watch = watching(&[&file]).await;
        folder.write("file", "1");
        folder.write("other", "2");
        fs::read(&file).expect("read");
        assert!(timeout(QUIET * 5, watch.changed()).await.is_err());
        folder.write("file", "2");
        assert!(watch.look().await && !watch.look().await, "who looks knows");
        assert!(timeout(QUIET * 5, watch.changed()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_does_not_tell_is_found_by_looking() {
        let folder = Folder::new("watch-poll");
        let file = folder.write("file", "1");
        let mut watch = watching(&[&file]).await;
        watch.folders = None;
        folder.write("file", "2");
        assert!(timeout(POLL * 2, watch.changed()).await.is_ok());
    }
}

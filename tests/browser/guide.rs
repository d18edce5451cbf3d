//! The README's guide: each command in it is run as it stands there, in a terminal, and shows what the guide shows.
//!
//! A `sh` block is a paste into a terminal; one that begins with `# in a terminal of its own` goes on until Ctrl-C, at the
//! end of its section. The `text` block after it is what one sees: these lines in this order, others between them left
//! out, `…` for anything. Below a paragraph that begins with `Open <URL>` it is what the page there shows. Ports are
//! replaced by others that are free, wherever a block says `127.0.0.1:PORT` or `--port PORT`.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::process::binary;
use crate::stage::check;

const OWN_TERMINAL: &str = "# in a terminal of its own\n";

/// What a reader does, with what they see then.
enum Step {
    Paste(String),
    PasteAndLeave(String),
    Open(String),
}

/// The steps of the section below `heading`.
fn section(heading: &str) -> Vec<(Step, Vec<String>)> {
    let readme = fs::read_to_string("README.md").expect("README.md");
    let start = readme.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = &readme[start + 1 + heading.len()..];
    let section =
        section.split("\n## ").next().and_then(|all| all.split("\n### ").next()).expect("a section");
    let section = with_free_ports(section);
    let mut steps: Vec<(Step, Vec<String>)> = Vec::new();
    let mut rest = section.as_str();
    while let Some((prose, fenced)) = rest.split_once("\n```") {
        for paragraph in prose.split("\n\n").map(str::trim_start) {
            if let Some((url, _)) = paragraph.strip_prefix("Open <").and_then(|open| open.split_once('>')) {
                steps.push((Step::Open(url.to_owned()), Vec::new()));
            }
        }
        let (block, after) = fenced.split_once("\n```").expect("a fence that ends");
        rest = after;
        let (kind, text) = block.split_once('\n').expect("a block");
        match kind {
            "sh" if text.starts_with(OWN_TERMINAL) => {
                steps.push((Step::PasteAndLeave(text.to_owned()), Vec::new()));
            }
            "sh" => steps.push((Step::Paste(text.to_owned()), Vec::new())),
            "text" => {
                let seen = &mut steps.last_mut().expect("something to do before there is something to see").1;
                assert!(seen.is_empty(), "two blocks of text for one step");
                seen.extend(text.lines().map(str::to_owned));
            }
            other => panic!("a block of {other}: nobody runs it"),
        }
    }
    assert!(!steps.is_empty(), "{heading}: nothing to do");
    for (step, seen) in &steps {
        let (Step::Paste(what) | Step::PasteAndLeave(what) | Step::Open(what)) = step;
        assert!(!seen.is_empty(), "nothing to see after {what}");
    }
    steps
}

fn with_free_ports(text: &str) -> String {
    let mut ports = HashMap::new();
    let mut replaced = String::new();
    let mut rest = text;
    let next = |rest: &str| {
        let after = |mark: &str| rest.find(mark).map(|at| at + mark.len());
        after("127.0.0.1:").into_iter().chain(after("--port ")).min()
    };
    while let Some(at) = next(rest) {
        let digits = rest[at..].chars().take_while(char::is_ascii_digit).count();
        let (before, port) = (&rest[..at], &rest[at..at + digits]);
        replaced.push_str(before);
        replaced.push_str(&ports.entry(port.to_owned()).or_insert_with(free_port).to_string());
        rest = &rest[at + digits..];
    }
    replaced + rest
}

/// A port that nobody listens on, and that nobody gets who asks for any port.
fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).expect("small");
    loop {
        let port = 20_000 + (first + TAKEN.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A shell in a terminal. Ends with Ctrl-C.
struct Terminal {
    script: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn paste(text: &str) -> Self {
        let folder = binary().canonicalize().expect("the binary").parent().expect("a folder").to_owned();
        let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap_or_default());
        let mut script = Command::new("script");
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            if ["METORIAL_", "CARGO", "npm_"].iter().any(|prefix| name.starts_with(prefix)) {
                script.env_remove(&*name);
            }
        }
        // What was installed once need not be asked for again.
        script.envs([("PATH", path.as_str()), ("NO_COLOR", "1"), ("npm_config_prefer_offline", "true")]);
        // As wide as the guide's lines need.
        script.env("GUIDE", text).args(["-qefc", r#"stty cols 500; bash -euc "$GUIDE""#, "/dev/null"]);
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut script = script.spawn().expect("script (Debian: bsdutils), which gives a command a terminal");
        let keys = script.stdin.take().expect("piped");
        let mut output = script.stdout.take().expect("piped");
        let shown = Arc::new(Mutex::new(String::new()));
        let collected = shown.clone();
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                let mut shown = collected.lock().unwrap_or_else(PoisonError::into_inner);
                shown.push_str(&String::from_utf8_lossy(&piece[..length]));
            }
        });
        Self { script, keys, shown, reader: Some(reader) }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all of `lines` are there.
    fn shows(&mut self, text: &str, lines: &[String]) {
        for _ in 0..12_000 {
            if shows(&self.shown(), lines) {
                return;
            }
            let ended = self.script.try_wait().expect("a child");
            assert!(ended.is_none(), "{ended:?}\n$ {text}\n{}", self.shown());
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{lines:#?}\nare not shown by\n$ {text}\n{}", self.shown());
    }

    /// Waits for its end.
    fn ends(&mut self, text: &str) {
        let status = self.script.wait().expect("a child");
        self.reader.take().map(JoinHandle::join).expect("once").expect("read");
        assert!(status.success(), "{status}\n$ {text}\n{}", self.shown());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A second Ctrl-C is for who doesn't wait until balancers have heard of it.
        while let Ok(None) = self.script.try_wait() {
            drop(self.keys.write_all(b"\x03").and_then(|()| self.keys.flush()));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether `output` has these lines in this order.
fn shows(output: &str, lines: &[String]) -> bool {
    let output = plain(output);
    let mut shown = output.split(['\n', '\r']).map(str::trim_end);
    lines.iter().all(|line| shown.any(|shown| matches(shown, line)))
}

/// Without what moves the cursor and clears lines (ECMA-48 control sequences); to the first column is a line of its own.
fn plain(output: &str) -> String {
    let output = output.replace("\u{1b}[1G", "\r");
    let mut parts = output.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    let after =
        |part: &str| part.find(|c: char| c.is_ascii_alphabetic()).map(|end| part[end + 1..].to_owned());
    first + &parts.filter_map(after).collect::<String>()
}

/// Whether `line` is `shown`, with `…` for anything.
fn matches(shown: &str, line: &str) -> bool {
    let mut parts = line.trim_end().split('…');
    let Some(mut rest) = shown.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[track_caller]
fn follow(heading: &str) {
    let mut open = Vec::new();
    for (step, seen) in section(heading) {
        match step {
            Step::Paste(text) => {
                let mut terminal = Terminal::paste(&text);
                terminal.ends(&text);
                assert!(
                    shows(&terminal.shown(), &seen),
                    "{seen:#?}\nare not shown by\n$ {text}\n{}",
                    terminal.shown()
                );
            }
            Step::PasteAndLeave(text) => {
                let mut terminal = Terminal::paste(&text);
                terminal.shows(&text, &seen);
                open.push(terminal);
            }
            Step::Open(url) => {
                let seen = seen.iter().map(String::as_str);
                let arguments: Vec<&str> = ["--url", &url, "--"].into_iter().chain(seen).collect();
                check("page_shows.mjs", &arguments, &[]);
            }
        }
    }
}

/// A test for each section.
macro_rules! sections {
    ($($name:ident: $heading:literal,)*) => {
        $(#[test] fn $name() { follow($heading); })*

        #[test]
        fn there_are_no_other_sections() {
            let readme = fs::read_to_string("README.md").expect("README.md");
            let (_, guide) = readme.split_once("\n## Ten minutes\n").expect("a guide");
            let guide = guide.split("\n## ").next().expect("a guide");
            let (first, _) = guide.split_once("\n### ").expect("a section");
            assert!(!first.contains("```"), "a block before the first section");
            let found: Vec<&str> = guide.lines().filter(|line| line.starts_with("###")).collect();
            assert_eq!(found, [$($heading),*]);
        }
    };
}

sections! {
    the_demo: "### 1. Everything on this machine",
    a_key_and_a_page_of_ones_own: "### 2. Your own key and your own page",
    a_sidecar: "### 3. A sidecar",
    replicas: "### 4. Replicas",
}

#[test]
fn a_line_is_shown_whole() {
    for (shown, line, expected) in [
        ("HTTP/1.1 200 OK", "HTTP/1.1 200 OK", true),
        ("HTTP/1.1 200 OK, or so", "HTTP/1.1 200 OK", false),
        ("r=99;t=598 s", "r=99;t=… s", true),
        ("r=99;t=598 m", "r=99;t=… s", false),
        ("a b c", "…b…", true),
        ("a c", "…b…", false),
    ] {
        assert_eq!(matches(shown, line), expected, "{shown}, {line}");
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(shows("one\r\ntwo\r\nthree", &lines("one\nthree")));
    assert!(!shows("one\r\ntwo", &lines("two\none")));
    assert!(shows("…\u{1b}[1G\u{1b}[0Kone\r\u{1b}[2Ktwo\u{1b}[?25h", &lines("one\ntwo")));
}

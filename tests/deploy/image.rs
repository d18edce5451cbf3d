//! What the container images promise, read from their Dockerfiles: they can't be built where these tests run.

use std::fs;
use std::path::Path;

struct Stage {
    from: String,
    instructions: Vec<(String, String)>,
}

impl Stage {
    /// What follows `instruction`, each time it stands in the stage.
    fn all(&self, instruction: &str) -> Vec<&str> {
        let wanted = self.instructions.iter().filter(|(name, _)| name == instruction);
        wanted.map(|(_, rest)| rest.as_str()).collect()
    }

    /// Files and folders that the stage copies from the build context.
    fn copied(&self) -> Vec<&str> {
        let from_context = self.all("COPY").into_iter().filter(|copy| !copy.contains("--from="));
        from_context
            .flat_map(|copy| {
                let words: Vec<&str> =
                    copy.split_whitespace().filter(|word| !word.starts_with("--")).collect();
                words[..words.len() - 1].to_vec()
            })
            .collect()
    }
}

/// The stages of a Dockerfile: comments dropped, continued lines joined.
fn stages(text: &str) -> Vec<Stage> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let mut stages: Vec<Stage> = Vec::new();
    for line in joined.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (name, stages.last_mut()) {
            ("FROM", _) => stages.push(Stage { from: rest.trim().to_owned(), instructions: Vec::new() }),
            (_, Some(stage)) => stage.instructions.push((name.to_owned(), rest.trim().to_owned())),
            (_, None) => {}
        }
    }
    stages
}

fn dockerfile() -> Vec<Stage> {
    read("deploy/Dockerfile")
}

fn read(file: &str) -> Vec<Stage> {
    let stages = stages(&fs::read_to_string(file).unwrap_or_default());
    assert_eq!(stages.len(), 2, "{file} has a stage that builds and one that ships");
    stages
}

/// The variables that the image sets.
pub(crate) fn environment() -> Vec<(String, String)> {
    let set = dockerfile()[1].all("ENV").join(" ");
    let pairs = set.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_builder_is_the_toolchain_that_the_tests_use() {
    let toolchain: toml::Table = fs::read_to_string("rust-toolchain.toml").unwrap().parse().unwrap();
    let version = toolchain["toolchain"]["channel"].as_str().unwrap();
    let stages = dockerfile();
    // bookworm, as in the image that ships: a newer glibc would not start there.
    assert_eq!(stages[0].from, format!("rust:{version}-bookworm AS build"));
    assert!(stages[1].from.contains("-debian12:"), "{}", stages[1].from);
}

#[test]
fn it_builds_what_ships_from_the_lock_file() {
    let stages = dockerfile();
    let build = stages[0].all("RUN").join(" ");
    assert!(build.contains("cargo build --release --locked"), "{build}");
    assert!(build.contains("--mount=type=cache,target=/usr/local/cargo/registry"), "{build}");
}

#[test]
fn what_ships_runs_without_root_on_every_interface() {
    let stages = dockerfile();
    let ships = &stages[1];
    assert!(ships.from.ends_with(":nonroot"), "{}", ships.from);
    // By number: with a name Kubernetes' runAsNonRoot can't tell.
    let user = ships.all("USER").join(" ");
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "USER {user}");
    let every = |name: &str, port| (name.to_owned(), format!("0.0.0.0:{port}"));
    assert_eq!(environment(), [every("METORIAL_PROXY_LISTEN", 8080), every("METORIAL_PROXY_ADMIN", 9090)]);
    assert_eq!(ships.all("EXPOSE"), ["8080 9090"]);
    assert_eq!(ships.all("ENTRYPOINT"), [r#"["/metorial-proxy"]"#]);
    // Nothing that needs a shell: the image has none.
    assert!(ships.all("RUN").is_empty());
}

#[test]
fn what_ships_says_what_it_is() {
    let stages = dockerfile();
    let labels = stages[1].all("LABEL").join(" ");
    let base = stages[1].from.as_str();
    for (name, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("revision", "${REVISION}"),
        ("base.name", base),
    ] {
        let label = format!("org.opencontainers.image.{name}=\"{value}\"");
        assert!(labels.contains(&label), "no {label} in {labels}");
    }
}

#[test]
fn the_static_image_is_the_same_without_a_libc() {
    let (stages, of_static) = (dockerfile(), read("deploy/Dockerfile.static"));
    let rust = |stages: &[Stage]| stages[0].from.split(['-', ' ']).next().map(str::to_owned);
    assert_eq!(rust(&stages), rust(&of_static));
    assert_eq!(of_static[1].from, "scratch");
    // The profile is of the build with glibc.
    let copied: Vec<&str> =
        stages[0].all("COPY").into_iter().filter(|copy| *copy != ".cargo .cargo").collect();
    assert_eq!(copied, of_static[0].all("COPY"));
    assert_eq!(stages[0].all("RUN").last(), of_static[0].all("RUN").last());
    for instruction in ["COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"] {
        assert_eq!(stages[1].all(instruction), of_static[1].all(instruction), "{instruction}");
    }
}

#[test]
fn its_health_is_asked_by_its_own_binary() {
    let stages = dockerfile();
    let health = stages[1].all("HEALTHCHECK").join(" ");
    assert!(health.ends_with(r#"CMD ["/metorial-proxy", "health"]"#), "{health}");
}

#[test]
fn everything_copied_is_there_and_reaches_the_build() {
    let ignore = fs::read_to_string(".dockerignore").unwrap();
    assert!(ignore.lines().any(|line| line == "*"), ".dockerignore lets in what it lists alone");
    for stage in dockerfile() {
        for source in stage.copied() {
            assert!(Path::new(source).exists(), "COPY {source}: there is no such file");
            assert!(
                ignore.lines().any(|line| line == format!("!{source}")),
                "{source} isn't in .dockerignore"
            );
        }
    }
}

#[test]
fn everything_the_build_reads_is_copied() {
    let stages = dockerfile();
    let copied = stages[0].copied();
    assert!(
        copied.contains(&".cargo"),
        "without its profile the build is slower: COPY .cargo in the Dockerfile"
    );
    let manifest: toml::Table = fs::read_to_string("Cargo.toml").unwrap().parse().unwrap();
    for (section, folder) in [("bench", "benches"), ("example", "examples"), ("test", "tests")] {
        let targets = manifest.get(section).and_then(toml::Value::as_array).into_iter().flatten();
        for target in targets {
            let path = target.get("path").and_then(toml::Value::as_str).unwrap_or(folder);
            let folder = path.split('/').next().unwrap();
            assert!(copied.contains(&folder), "Cargo.toml names {target}: COPY {folder} in the Dockerfile");
        }
    }
    let mut folders = vec![Path::new("src").to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                for included in included(&text) {
                    let target = path.parent().unwrap().join(included).canonicalize().unwrap();
                    let reached =
                        copied.iter().any(|source| target.starts_with(fs::canonicalize(source).unwrap()));
                    assert!(reached, "{} includes {included}: COPY it in the Dockerfile", path.display());
                }
            }
        }
    }
}

/// The paths in `include_str!("…")` and `include_bytes!("…")`.
fn included(text: &str) -> Vec<&str> {
    let calls = ["include_str!(\"", "include_bytes!(\""];
    calls.iter().flat_map(|call| text.split(call).skip(1).filter_map(|rest| rest.split('"').next())).collect()
}

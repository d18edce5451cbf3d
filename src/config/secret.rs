//! Where a secret is read from: `{ file = "…" }` or `{ env = "…" }`, never the configuration file itself.

use std::io::Read;
use std::path::Path;

use super::fault::Wrong;
use super::raw::SecretSource;
use super::reader::Reader;
use super::value::{Field, Section, Value};

const WRITE_A_SOURCE: &str = "write { file = \"/run/secrets/…\" } or { env = \"NAME\" }";
/// No key or token comes near; what is longer is the wrong file.
const LONGEST: u64 = 64 * 1024;

/// A secret's source, as written.
#[derive(Debug)]
pub(super) struct Secret(Section<SecretSource>);

impl Value for Secret {
    fn read(value: toml::Value) -> Result<Self, Wrong> {
        match value {
            toml::Value::Table(_) => Section::read(value).map(Self),
            toml::Value::String(_) => Err(Wrong::new(
                "is written out, and a secret never stands in the configuration",
                format!("{WRITE_A_SOURCE}; if others could read the file, revoke the secret"),
            )),
            _ => Err(Wrong::new("is no source of a secret", WRITE_A_SOURCE)),
        }
    }
}

/// The text of the secret at `key`, as it was found: a trailing line break is its reader's to cut.
pub(super) fn read(at: &mut Reader<'_, '_>, key: &str, field: Field<Secret>) -> Option<String> {
    let Secret(section) = at.optional(key, field)?;
    let source = at.section(key, Field::Set(section));
    let mut here = at.at(key);
    let file = here.optional("file", source.file);
    let variable = here.optional("env", source.env);
    let (key, text) = match (file, variable) {
        (Some(file), None) => {
            here.context.files.push(file.clone().into());
            ("file", from_file(&file))
        }
        (None, Some(variable)) => ("env", from_variable(&mut here, &variable)),
        (Some(_), Some(_)) => ("", Err(Wrong::new("has two sources", "keep one of file and env"))),
        (None, None) => ("", Err(Wrong::new("has no source", WRITE_A_SOURCE))),
    };
    text.map_err(|wrong| here.refuse(key, wrong)).ok()
}

fn from_file(file: &str) -> Result<String, Wrong> {
    let text = read_file(Path::new(file), LONGEST)?;
    if text.trim().is_empty() {
        return Err(Wrong::new(format!("the file {file:?} is empty"), "write the secret into it"));
    }
    Ok(text)
}

fn from_variable(at: &mut Reader<'_, '_>, name: &str) -> Result<String, Wrong> {
    let Some(value) = at.context.variables.get(std::ffi::OsStr::new(name)) else {
        let cure = format!("set {name}, or use another source");
        return Err(Wrong::new(format!("the environment variable {name} is not set"), cure));
    };
    at.context.read.insert(name.to_owned());
    match value.to_str() {
        None => Err(Wrong::new(format!("the environment variable {name} is not UTF-8"), "set it anew")),
        Some(text) if text.trim().is_empty() => {
            Err(Wrong::new(format!("the environment variable {name} is empty"), "set it to the secret"))
        }
        Some(text) => Ok(text.to_owned()),
    }
}

/// Reads a text file of at most `longest` bytes; what goes wrong is told without its content.
pub(super) fn read_file(path: &Path, longest: u64) -> Result<String, Wrong> {
    let unreadable = |error: std::io::Error| {
        let cure = match error.kind() {
            std::io::ErrorKind::NotFound => "create it, or correct the path",
            std::io::ErrorKind::PermissionDenied => "let the user that runs the proxy read it",
            _ => "check the file",
        };
        Wrong::new(format!("the file {path:?} cannot be read ({})", error.kind()), cure)
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(longest + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > longest {
        return Err(Wrong::new(
            format!("the file {path:?} is longer than {longest} bytes"),
            "correct the path",
        ));
    }
    String::from_utf8(bytes)
        .map_err(|_| Wrong::new(format!("the file {path:?} is not UTF-8"), "write plain text into it"))
}

/// Checks that a file to be read later, when it is needed, is there.
pub(super) fn existing_file(path: String) -> Result<std::path::PathBuf, Wrong> {
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(Wrong::new(format!("{path:?} is a directory"), "write the path of a PEM file"))
        }
        Ok(_) => Ok(path.into()),
        Err(error) => {
            let message = format!("the file {path:?} cannot be read ({})", error.kind());
            Err(Wrong::new(message, "create it, or correct the path"))
        }
    }
}

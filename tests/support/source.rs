//! Reads Rust source for what it imports: a small lexer and a resolver of paths, no more than the house rules need.

use std::collections::BTreeSet;

/// A module's place in the crate: `["policy", "cache"]` for `src/policy/cache.rs`, `[]` for the crate root.
pub(crate) type ModulePath = Vec<String>;

/// One file: what it imports, which of its modules exist only in tests, and how long it is without its tests.
pub(crate) struct Source {
    /// `src/policy/cache.rs`
    pub(crate) file: String,
    /// Where the file stands in the crate.
    pub(crate) module: ModulePath,
    /// Lines before `#[cfg(test)] mod tests {`.
    pub(crate) lines: usize,
    tokens: Vec<Token>,
}

/// A path from the crate root that a file names outside its tests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// Where it is named, from 1.
    pub(crate) line: usize,
    /// `["policy", "cache", "Page"]`; `*` is a segment too.
    pub(crate) path: ModulePath,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ident(String),
    PathSep,
    Other(char),
}

#[derive(Debug, Clone)]
struct Token {
    line: usize,
    kind: Kind,
}

impl Token {
    fn is(&self, c: char) -> bool {
        self.kind == Kind::Other(c)
    }

    fn is_ident(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Ident(ident) if ident == name)
    }
}

impl Source {
    /// Reads one file of the crate.
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let module = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module = match module {
            "lib" | "main" => Vec::new(),
            _ => module.split('/').map(str::to_owned).collect(),
        };
        Self { file: file.to_owned(), module, lines: lines_without_tests(text), tokens: lex(text) }
    }

    /// The modules in files of their own that are declared behind `#[cfg(test)]` here: `["config", "tests"]`.
    pub(crate) fn test_modules(&self) -> Vec<ModulePath> {
        let mut found = Vec::new();
        for at in 0..self.tokens.len() {
            let Some(end) = cfg_test(&self.tokens, at) else { continue };
            let item = &self.tokens[end..];
            let Some(at_mod) = item.iter().take(5).position(|t| t.is_ident("mod")) else { continue };
            if let [Token { kind: Kind::Ident(name), .. }, semi, ..] = &item[at_mod + 1..]
                && semi.is(';')
            {
                found.push(join(&self.module, name));
            }
        }
        found
    }

    /// What the file names outside its tests, as paths from the crate root. `modules` are all modules in files.
    pub(crate) fn imports(&self, modules: &BTreeSet<ModulePath>) -> BTreeSet<Import> {
        let tokens = without_tests(&self.tokens);
        let mut imports = BTreeSet::new();
        let mut here = self.module.clone();
        let mut depth = 0_usize;
        let mut inline = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let next = tokens.get(at + 1);
            match &tokens[at].kind {
                Kind::Ident(word) if word == "mod" => {
                    if let (Some(Token { kind: Kind::Ident(name), .. }), Some(open)) =
                        (next, tokens.get(at + 2))
                        && open.is('{')
                    {
                        here.push(name.clone());
                        inline.push(depth);
                    }
                }
                Kind::Ident(word) if word == "use" && !next.is_some_and(|t| t.is('<')) => {
                    let mut found = Vec::new();
                    at = use_tree(&tokens, at + 1, &[], &mut found);
                    imports.extend(found.into_iter().filter_map(|i| resolve(&i, &here, modules)));
                    continue;
                }
                // pub(in crate::policy) imports nothing.
                Kind::Ident(word) if word == "in" && at > 0 && tokens[at - 1].is('(') => {
                    at = plain_path(&tokens, at + 1).1;
                    continue;
                }
                Kind::Ident(word)
                    if matches!(word.as_str(), "crate" | "self" | "super")
                        && next.is_some_and(|t| t.kind == Kind::PathSep) =>
                {
                    let (import, end) = plain_path(&tokens, at);
                    imports.extend(resolve(&import, &here, modules));
                    at = end;
                    continue;
                }
                Kind::Other('{') => depth += 1,
                Kind::Other('}') => {
                    depth = depth.saturating_sub(1);
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        here.pop();
                    }
                }
                Kind::Ident(_) | Kind::PathSep | Kind::Other(_) => {}
            }
            at += 1;
        }
        imports
    }
}

fn join(module: &[String], name: &str) -> ModulePath {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

/// `crate::a`, `self::a`, `super::a` and `child::a` from the crate root; nothing for other crates.
fn resolve(import: &Import, here: &[String], modules: &BTreeSet<ModulePath>) -> Option<Import> {
    let mut base = here.to_vec();
    let mut rest = import.path.as_slice();
    match rest.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        name if modules.contains(&join(here, name)) => {}
        _ => return None,
    }
    base.extend(rest.iter().filter(|segment| *segment != "self").cloned());
    Some(Import { line: import.line, path: base })
}

fn plain_path(tokens: &[Token], mut at: usize) -> (Import, usize) {
    let line = tokens[at].line;
    let mut path = Vec::new();
    while let Some(Token { kind: Kind::Ident(name), .. }) = tokens.get(at) {
        path.push(name.clone());
        at += 1;
        if tokens.get(at).is_none_or(|t| t.kind != Kind::PathSep) {
            break;
        }
        at += 1;
    }
    (Import { line, path }, at)
}

/// Reads the tree of a `use` at `at`; the index after it.
fn use_tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Import>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match &token.kind {
            Kind::Ident(word) if word == "as" => at += 2,
            Kind::Ident(name) => {
                path.push(name.clone());
                at += 1;
            }
            Kind::PathSep => at += 1,
            Kind::Other('*') => {
                path.push("*".to_owned());
                at += 1;
            }
            Kind::Other('{') => {
                at += 1;
                while tokens.get(at).is_some_and(|t| !t.is('}')) {
                    at = use_tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|t| t.is(',')));
                }
                return at + 1;
            }
            Kind::Other(_) => {
                found.push(Import { line: token.line, path });
                return at;
            }
        }
    }
    at
}

/// The index after `#[cfg(test)]` and the attributes that follow it, where one begins at `at`.
fn cfg_test(tokens: &[Token], at: usize) -> Option<usize> {
    let text = |t: &Token| match &t.kind {
        Kind::Ident(name) => name.clone(),
        Kind::PathSep => "::".to_owned(),
        Kind::Other(c) => c.to_string(),
    };
    let attribute: String = tokens.get(at..at + 7)?.iter().map(text).collect();
    if attribute != "#[cfg(test)]" {
        return None;
    }
    let mut end = at + 7;
    while tokens.get(end).is_some_and(|t| t.is('#')) {
        end += tokens[end..].iter().position(|t| t.is(']'))? + 1;
    }
    Some(end)
}

fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match cfg_test(tokens, at) {
            Some(end) => at = item_end(tokens, end),
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// The index after the item at `at`: after its `;` or its closing brace.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(token) = tokens.get(at) {
        match token.kind {
            Kind::Other('(' | '[' | '{') => depth += 1,
            Kind::Other(';') if depth == 0 => return at + 1,
            Kind::Other(')' | ']' | '}') if depth == 0 => return at,
            Kind::Other(c @ (')' | ']' | '}')) => {
                depth -= 1;
                if depth == 0 && c == '}' {
                    return at + 1;
                }
            }
            Kind::Ident(_) | Kind::PathSep | Kind::Other(_) => {}
        }
        at += 1;
    }
    at
}

fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests = (0..lines.len()).find(|&at| {
        lines[at] == "#[cfg(test)]"
            && lines[at + 1..].iter().take(3).any(|line| line.starts_with("mod tests {"))
    });
    tests.unwrap_or(lines.len())
}

/// Identifiers, `::` and single characters, each with its line; comments, literals and lifetimes are left out.
fn lex(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        let mut kind = None;
        match chars[at] {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => {
                let mut depth = 0_usize;
                while at < chars.len() {
                    match (chars[at], peek(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => at = end_of_quoted(&chars, at, '"'),
            '\'' if peek(at + 1) == '\\' || peek(at + 2) == '\'' => at = end_of_quoted(&chars, at, '\''),
            '\'' => {
                at += 1;
                while word(peek(at)) {
                    at += 1;
                }
            }
            c if word(c) => {
                while word(peek(at)) {
                    at += 1;
                }
                let name: String = chars[start..at].iter().collect();
                match end_of_raw_string(&chars, at, &name) {
                    Some(end) => at = end,
                    None => kind = Some(Kind::Ident(name)),
                }
            }
            ':' if peek(at + 1) == ':' => {
                at += 2;
                kind = Some(Kind::PathSep);
            }
            c => {
                at += 1;
                kind = (!c.is_whitespace()).then_some(Kind::Other(c));
            }
        }
        tokens.extend(kind.map(|kind| Token { line, kind }));
        at = at.min(chars.len());
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn end_of_quoted(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The index after `r"…"`, `br#"…"#` and the like, whose prefix `name` ends at `at`.
fn end_of_raw_string(chars: &[char], at: usize, name: &str) -> Option<usize> {
    if !matches!(name, "r" | "br" | "cr") {
        return None;
    }
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let closing: Vec<char> = ['"'].into_iter().chain(std::iter::repeat_n('#', hashes)).collect();
    let body = at + hashes + 1;
    let length = chars[body..].windows(closing.len()).position(|window| window == closing)?;
    Some(body + length + closing.len())
}

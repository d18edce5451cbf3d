//! Which API versions a caller may ask for.
//!
//! A version goes by several names, and the API takes each of them. A name that is not known here is compared to the letter.

/// Names of one version each; the first is the one the API's own clients send.
const ALIASES: [[&str; 4]; 2] = [
    ["2026-01-01-magnetar", "magnetar", "2026-01-01", "mt_2026_01_01_magnetar"],
    ["2025-01-01-pulsar", "pulsar", "2025-01-01", "mt_2025_01_01_pulsar"],
];

/// The versions an environment accepts, by every name they go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions(Vec<String>);

impl Versions {
    /// Reads the names an operator listed; `""` stands for a request that names no version.
    ///
    /// # Errors
    /// Each name that no request could carry: its place in the list, and what is wrong with it.
    pub fn parse(names: &[impl AsRef<str>]) -> Result<Self, Vec<(usize, String)>> {
        let mut accepted = Vec::new();
        let mut errors = Vec::new();
        for (at, name) in names.iter().map(AsRef::as_ref).enumerate() {
            if !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                errors.push((at, format!("{name:?} is no API version: it holds white space or non-ASCII")));
            }
            match ALIASES.iter().find(|names| names.contains(&name)) {
                Some(names) => accepted.extend(names.iter().map(ToString::to_string)),
                None => accepted.push(name.to_owned()),
            }
        }
        if errors.is_empty() { Ok(Self(accepted)) } else { Err(errors) }
    }

    /// Whether a request for `version` is accepted; `None`: it names none.
    pub fn allows(&self, version: Option<&[u8]>) -> bool {
        let version = version.unwrap_or_default();
        self.0.iter().any(|accepted| accepted.as_bytes() == version)
    }
}

impl Default for Versions {
    /// No version, and the two the API has published.
    fn default() -> Self {
        let published = ALIASES.iter().flatten().map(ToString::to_string);
        Self(std::iter::once(String::new()).chain(published).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(versions: &Versions, version: &str) -> bool {
        versions.allows(Some(version.as_bytes()))
    }

    #[test]
    fn no_version_and_both_published_ones_are_accepted_unless_told_otherwise() {
        let versions = Versions::default();
        assert!(versions.allows(None));
        for name in ALIASES.iter().flatten() {
            assert!(allows(&versions, name), "{name}");
        }
        for other in ["mt_2025_01_01_dashboard", "2026-04-01-consumer", "MAGNETAR", "2026"] {
            assert!(!allows(&versions, other), "{other}");
        }
        assert_eq!(
            Versions::parse(&["", "magnetar", "pulsar"]).map(|listed| {
                let mut names = [listed.0, versions.0];
                names.iter_mut().for_each(|names| names.sort());
                names[0] == names[1]
            }),
            Ok(true)
        );
    }

    #[test]
    fn a_listed_version_is_accepted_by_each_of_its_names_and_no_other_is() {
        for name in ALIASES[0] {
            let versions = Versions::parse(&[name]).expect("a version");
            assert!(ALIASES[0].iter().all(|alias| allows(&versions, alias)), "{name}");
            assert!(!ALIASES[1].iter().any(|alias| allows(&versions, alias)), "{name}");
            assert!(!versions.allows(None), "{name}");
        }
    }

    #[test]
    fn an_unknown_version_is_compared_to_the_letter() {
        let versions = Versions::parse(&["mt_2027_01_01_quasar"]).expect("a version");
        assert!(allows(&versions, "mt_2027_01_01_quasar"));
        assert!(!allows(&versions, "quasar") && !allows(&versions, "mt_2027_01_01_Quasar"));
    }

    #[test]
    fn a_name_that_no_request_could_carry_is_refused_with_its_place() {
        let places = |error: Vec<(usize, String)>| error.into_iter().map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(Versions::parse(&["", "a b", "pulsar", "é"]).map_err(places), Err(vec![1, 3]));
    }
}

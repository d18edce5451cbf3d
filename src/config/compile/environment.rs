//! `[[environments]]`

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::budget::Share;
use super::{access, budget, choice, is_loopback, name, unique};
use crate::config::fault::Wrong;
use crate::config::reader::Reader;
use crate::config::value::{Field, Section};
use crate::config::{raw, secret};
use crate::domain::environment::Environment;
use crate::domain::key::{InvalidKey, KeyDigest, SecretKey};
use crate::domain::origin::{self, Origins};
use crate::domain::quota::{Algorithm, Quota};
use crate::domain::version::Versions;

/// Taken, in metrics and `/status`.
const EGRESS: &str = "egress";

/// What environments have in common, and what no two of them may.
struct Scope<'a> {
    /// Freshness of their pages.
    ttl: Duration,
    listen: &'a [SocketAddr],
    /// Names, and where each is.
    names: Vec<(String, String)>,
    /// Callers' keys, and where each is.
    keys: HashMap<KeyDigest, String>,
    /// The one that is keyless.
    keyless: Option<String>,
}

/// Every environment; `None` where one lacks what it cannot be built without, which is then noted.
pub(super) fn compile(
    file: &mut Reader<'_, '_>,
    raw: raw::List<Section<raw::Environment>>,
    ttl: Duration,
    listen: &[SocketAddr],
) -> Vec<Option<Environment>> {
    const CURE: &str = "write at least one [[environments]], with name, secret_key and publishable_keys";
    if matches!(&raw, Field::Set(raws) if raws.is_empty()) {
        file.refuse("environments", Wrong::new("is empty", CURE));
    }
    let raws = file.required("environments", raw, CURE).unwrap_or_default();
    let mut scope = Scope { ttl, listen, names: Vec::new(), keys: HashMap::new(), keyless: None };
    let (mut environments, mut shares) = (Vec::new(), Vec::new());
    for (index, raw) in raws.into_iter().enumerate() {
        let raw = file.table(&format!("environments[{index}]"), raw);
        environments.push(raw.and_then(|raw| {
            let (environment, share) = one(file.entry("environments", index), index, raw, &mut scope);
            shares.push(share);
            environment
        }));
    }
    let budgets = budget::compile(file, &shares);
    for (share, budget) in shares.iter().zip(budgets) {
        if let Some(environment) = &mut environments[share.index] {
            environment.budget = budget;
        }
    }
    environments
}

fn one(
    mut at: Reader<'_, '_>,
    index: usize,
    raw: raw::Environment,
    scope: &mut Scope<'_>,
) -> (Option<Environment>, Share) {
    let name = environment_name(&mut at, raw.name, scope);
    let kinds = [("production", Quota::PRODUCTION), ("development", Quota::DEVELOPMENT)];
    let kind = at.checked("kind", raw.kind, |text| choice(&text, &kinds)).unwrap_or(Quota::DEVELOPMENT);
    let own_limit = at.quota("limit", raw.limit);
    let limit = own_limit.unwrap_or(kind);
    let algorithms = [("window", Algorithm::Window), ("token-bucket", Algorithm::TokenBucket)];
    let algorithm =
        at.checked("algorithm", raw.algorithm, |text| choice(&text, &algorithms)).unwrap_or_default();
    let budget = at.checked("budget", raw.budget, |text| super::name(&text));
    at.present("secret_key", &raw.secret_key, "write { file = \"/run/secrets/…\" } or { env = \"NAME\" }");
    let secret_key = secret_key(&mut at, "secret_key", raw.secret_key);
    let next_secret_key = self::secret_key(&mut at, "next_secret_key", raw.next_secret_key);
    if secret_key.as_ref().zip(next_secret_key.as_ref()).is_some_and(|(key, next)| key.is(next)) {
        let wrong = Wrong::new("is the same key as secret_key", "put the new key there, or remove it");
        at.refuse("next_secret_key", wrong);
    }
    let keyless = at.value("keyless", raw.keyless, false);
    if keyless {
        check_keyless(&mut at, scope);
    }
    // A sidecar has one client: there is nobody to hold anything back for.
    let newcomer_reserve =
        at.share("newcomer_reserve", raw.newcomer_reserve, if keyless { 0.0 } else { 0.2 }) as f32;
    let publishable_keys = publishable_keys(&mut at, raw.publishable_keys, keyless, scope);
    let origin = |text: String| origin::parse(&text).map_err(|sentence| Wrong::from_sentence(&sentence));
    let origins = Origins::new(at.list("origins", raw.origins, origin).unwrap_or_default());
    let versions = versions(&mut at, raw.versions);
    let trusted = at.value("i_trust_these_callers", raw.i_trust_these_callers, false);
    let access = access::compile(&mut at, raw.allow, raw.rules, access::Callers { trusted, keyless });

    let share = Share {
        index,
        name: name.clone().unwrap_or_default(),
        limit,
        algorithm,
        limit_key: if own_limit.is_some() { "limit" } else { "kind" },
        budget,
        secret: secret_key.as_ref().map(SecretKey::fingerprint),
        next: next_secret_key.as_ref().map(SecretKey::fingerprint),
    };
    let environment = name.zip(secret_key).zip(access).map(|((name, secret_key), access)| Environment {
        name,
        // Known once all environments are.
        budget: String::new(),
        limit,
        algorithm,
        newcomer_reserve,
        secret_key,
        next_secret_key,
        publishable_keys,
        keyless,
        origins,
        versions,
        access,
        ttl: scope.ttl,
    });
    (environment, share)
}

fn environment_name(at: &mut Reader<'_, '_>, field: Field<String>, scope: &mut Scope<'_>) -> Option<String> {
    let field = match at.required("name", field, "write name = \"production\", or what you call it") {
        Some(text) => Field::Set(text),
        None => Field::Absent,
    };
    let here = at.path.clone();
    at.checked("name", field, |text| {
        let name = name(&text)?;
        if name == EGRESS {
            return Err(Wrong::new(
                "is the name of the budget of this proxy's own address",
                "choose another name",
            ));
        }
        if let Some((_, other)) = scope.names.iter().find(|(taken, _)| *taken == name) {
            return Err(Wrong::new(format!("{name:?} is the name of {other} too"), "name each differently"));
        }
        scope.names.push((name.clone(), here));
        Ok(name)
    })
}

fn secret_key(at: &mut Reader<'_, '_>, key: &str, field: Field<secret::Secret>) -> Option<SecretKey> {
    let text = secret::read(at, key, field)?;
    let cure = "put the instance's secret key there, from the Metorial dashboard";
    SecretKey::parse(&text).map_err(|wrong| at.refuse(key, Wrong::new(wrong.to_string(), cure))).ok()
}

fn check_keyless(at: &mut Reader<'_, '_>, scope: &mut Scope<'_>) {
    if let Some(open) = scope.listen.iter().find(|address| !is_loopback(address)) {
        at.refuse(
            "keyless",
            Wrong::new(
                format!("would let anyone who reaches {open} use the secret key"),
                "listen on 127.0.0.1 or [::1] alone, or list publishable keys instead",
            ),
        );
    }
    if let Some(other) = &scope.keyless {
        let message = format!("is true in {other} too: callers without a key could be meant for either");
        at.refuse("keyless", Wrong::new(message, "keep one of them"));
    }
    scope.keyless.get_or_insert_with(|| at.path.clone());
}

fn publishable_keys(
    at: &mut Reader<'_, '_>,
    field: raw::List<String>,
    keyless: bool,
    scope: &mut Scope<'_>,
) -> Vec<KeyDigest> {
    let none = match &field {
        Field::Absent => true,
        Field::Set(keys) => keys.is_empty(),
        Field::Wrong(_) => false,
    };
    if none && !keyless {
        at.refuse(
            "publishable_keys",
            Wrong::new(
                "is empty: nobody could use this environment",
                "list the publishable keys (metorial_pk_…) of its callers, or, for a sidecar, say keyless = true",
            ),
        );
    }
    let here = at.path.clone();
    let keys = at.list("publishable_keys", field, |text| {
        let key = KeyDigest::parse(&text).map_err(|wrong| {
            let cure = match wrong {
                InvalidKey::SecretForPublishable => {
                    "remove it, and list the publishable key of the same instance"
                }
                _ => "write metorial_pk_… or sha256: and the 64 hexadecimal digits of its SHA-256",
            };
            Wrong::new(wrong.to_string(), cure)
        })?;
        if let Some(other) = scope.keys.get(&key) {
            let message =
                if *other == here { "is listed twice".into() } else { format!("is listed in {other} too") };
            return Err(Wrong::new(message, "keep one of them: a key belongs to one environment"));
        }
        scope.keys.insert(key, here.clone());
        Ok(key)
    });
    keys.unwrap_or_default()
}

fn versions(at: &mut Reader<'_, '_>, field: raw::List<String>) -> Versions {
    let mut listed = BTreeSet::new();
    let Some(names) =
        at.list("versions", field, |name| unique(&mut listed, name.clone(), &format!("{name:?}")))
    else {
        return Versions::default();
    };
    const CURE: &str = "write names such as \"2026-01-01-magnetar\", and \"\" for requests that name none";
    if names.is_empty() {
        at.refuse("versions", Wrong::new("is empty: every request would be refused", CURE));
    }
    Versions::parse(&names).unwrap_or_else(|wrong| {
        for (index, sentence) in wrong {
            at.entry("versions", index).refuse("", Wrong::new(sentence, CURE));
        }
        Versions::default()
    })
}

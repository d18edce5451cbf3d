//! An environment: one secret key, the callers that may use it, and what they may do with it.

use std::time::Duration;

use crate::domain::access::AccessTable;
use crate::domain::key::{KeyDigest, SecretKey};
use crate::domain::origin::Origins;
use crate::domain::quota::{Algorithm, Plan, Quota};
use crate::domain::shares::Rule;
use crate::domain::version::Versions;

/// One `[[environments]]` entry, compiled.
#[derive(Debug)]
pub struct Environment {
    /// The operator's name for it: a metric label and a line of `/status`.
    pub name: String,
    /// Which budget it draws from: the operator's name, else the secret's fingerprint. Survives a rename.
    pub budget: String,
    /// What the API grants that budget.
    pub limit: Quota,
    /// How that is counted.
    pub algorithm: Algorithm,
    /// Share of the budget, 0 to 1, held back from clients above their fair share while two or more are active.
    pub newcomer_reserve: f32,
    /// The key that is injected.
    pub secret_key: SecretKey,
    /// The one that takes its place when upstream refuses it.
    pub next_secret_key: Option<SecretKey>,
    /// Callers' keys.
    pub publishable_keys: Vec<KeyDigest>,
    /// Callers without a key are served too (a sidecar on loopback).
    pub keyless: bool,
    /// Browser origins that may read answers.
    pub origins: Origins,
    /// API versions they may ask for.
    pub versions: Versions,
    /// What callers may do.
    pub access: AccessTable,
    /// Freshness of pages where neither upstream nor a rule says otherwise.
    pub ttl: Duration,
}

impl Environment {
    /// The plan of its budget.
    pub fn plan(&self) -> Plan {
        Plan { quota: self.limit, algorithm: self.algorithm }
    }

    /// How its budget is shared among clients.
    pub fn rule(&self) -> Rule {
        Rule { requests: self.limit.requests, reserve: self.newcomer_reserve }
    }
}

#[cfg(test)]
impl Environment {
    /// One that opens the catalog and provider deployments, reading and writing, to `metorial_pk_test`.
    pub(crate) fn example(name: &str) -> Self {
        use crate::domain::access::{Profile, Rule};

        let rule = |label: &str, methods: &[http::Method], path: &str| Rule {
            label: label.into(),
            methods: methods.to_vec(),
            path: path.into(),
            ..Rule::default()
        };
        let rules = [
            rule("rules[0]", &[http::Method::GET, http::Method::POST], "/provider-deployments"),
            rule("rules[1]", &[http::Method::GET, http::Method::DELETE], "/provider-deployments/{id}"),
        ];
        Self {
            name: name.into(),
            budget: name.into(),
            limit: Quota::DEVELOPMENT,
            algorithm: Algorithm::Window,
            newcomer_reserve: 0.2,
            secret_key: SecretKey::parse("metorial_sk_0123456789abcdef").expect("a key"),
            next_secret_key: None,
            publishable_keys: vec![KeyDigest::parse("metorial_pk_test").expect("a key")],
            keyless: false,
            origins: Origins::default(),
            versions: Versions::default(),
            access: AccessTable::compile(&[Profile::Catalog], &rules).expect("compiles"),
            ttl: Duration::from_secs(5),
        }
    }
}

//! What the store holds before anyone wrote to it: a pure function of a collection's path and an index.
//!
//! An id holds its index, masked by the path, so that neither a list nor a get needs a table.

use serde_json::{Map, Value, json};

/// A JSON object of the API.
pub(crate) type Item = Map<String, Value>;

/// What the items of one collection are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Naming {
    /// The `object` field: `provider.deployment`.
    pub(crate) object: String,
    /// The `entity` of a 404: `provider_deployment`.
    pub(crate) entity: String,
    /// What ids begin with, without the underscore: `pde`.
    pub(crate) prefix: String,
}

impl Naming {
    /// From a template: `/callbacks/{callbackId}/instances` names `callback.instance` with ids `cin_…`.
    pub(crate) fn of(template: &str) -> Self {
        let segments = template.split('/').filter(|segment| !segment.is_empty() && !segment.starts_with('{'));
        let words: Vec<String> = segments
            .flat_map(|segment| {
                let mut words: Vec<_> = segment.split('-').map(str::to_owned).collect();
                if let Some(last) = words.last_mut() {
                    *last = singular(last);
                }
                words
            })
            .collect();
        let first = words.first().map_or("obj", String::as_str);
        let last = words.last().map_or("obj", String::as_str);
        let prefix: String = if words.len() < 2 {
            first.chars().take(3).collect()
        } else {
            first.chars().take(1).chain(last.chars().take(2)).collect()
        };
        Self { object: words.join("."), entity: words.join("_"), prefix }
    }
}

fn singular(word: &str) -> String {
    match word {
        _ if word.ends_with("ies") => format!("{}y", &word[..word.len() - 3]),
        _ if word.ends_with('s') && !word.ends_with("ss") => word[..word.len() - 1].to_owned(),
        _ => word.to_owned(),
    }
}

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
const GATHER: u64 = inverse(SPREAD);
/// Digits that hold the masked index, and in all.
const HEAD: usize = 11;
const LENGTH: usize = 20;

/// The id of a collection's item `index`: the prefix, an underscore and twenty letters and digits.
pub(crate) fn id(naming: &Naming, path: &str, index: u64) -> String {
    let masked = index.wrapping_mul(SPREAD) ^ hash(path.as_bytes());
    let mut out = format!("{}_", naming.prefix);
    digits(&mut out, masked, HEAD);
    digits(&mut out, mix(masked), LENGTH - HEAD);
    out
}

/// The index behind an id of this collection.
pub(crate) fn index(naming: &Naming, path: &str, text: &str) -> Option<u64> {
    let digits = text.strip_prefix(&naming.prefix)?.strip_prefix('_')?.get(..HEAD)?;
    let masked = digits.bytes().try_fold(0u64, |value, digit| {
        let digit = ALPHABET.iter().position(|letter| *letter == digit)?;
        value.checked_mul(62)?.checked_add(u64::try_from(digit).ok()?)
    })?;
    let index = (masked ^ hash(path.as_bytes())).wrapping_mul(GATHER);
    (id(naming, path, index) == text).then_some(index)
}

/// The collection's item `index` as it was seeded.
pub(crate) fn item(naming: &Naming, path: &str, index: u64) -> Item {
    // Monday 2026-01-05, 10:00 UTC, and a minute for each item.
    let created = iso(1_767_607_200u64.saturating_add(index.saturating_mul(60)));
    let mut item = blank(naming, id(naming, path, index), &created);
    let number = index + 1;
    let name = NAMES[usize::try_from(index % NAMES.len() as u64).unwrap_or(0)];
    item.insert("name".into(), json!(format!("{name} {number}")));
    // Every eighth is archived, so that a filter has something to do.
    item.insert("status".into(), json!(if index % 8 == 7 { "archived" } else { "active" }));
    if naming.object == "provider.deployment" {
        item.insert("is_default".into(), json!(index == 0));
        item.insert("provider_id".into(), json!(id(&Naming::of("/providers"), "/providers", index % 5)));
    }
    item
}

/// An item as a create begins with it.
pub(crate) fn blank(naming: &Naming, id: String, created: &str) -> Item {
    let mut item = json!({
        "object": naming.object,
        "id": id,
        "status": "active",
        "name": null,
        "description": null,
        "metadata": {},
        "created_at": created,
        "updated_at": created,
    });
    if naming.object == "provider.deployment" {
        item["is_default"] = json!(false);
        item["tool_filter"] = json!({"type": "allow_all", "ignore_parent_filters": false});
        item["provider_id"] = json!(null);
        item["locked_version"] = json!(null);
        item["default_config"] = json!(null);
    }
    match item {
        Value::Object(item) => item,
        _ => Item::new(),
    }
}

const NAMES: [&str; 12] = [
    "Slack", "GitHub", "Linear", "Notion", "Stripe", "Postgres", "Sentry", "Figma", "Jira", "Discord",
    "Airtable", "Gmail",
];

/// What the API calls a secret in the objects of `object`, and one that stands for it. Never usable, always the same.
pub(crate) fn secret(naming: &Naming, id: &str) -> (&'static str, String) {
    let (field, prefix) = match naming.object.as_str() {
        object if object.starts_with("magic.mcp") => ("secret", "metorial_mk_"),
        object if object.contains("destination") => ("signing_secret", "whsec_"),
        _ => ("client_secret", "metorial_ek_"),
    };
    let mut text = prefix.to_owned();
    let mut state = hash(id.as_bytes());
    for _ in 0..6 {
        state = mix(state);
        digits(&mut text, state, 10);
    }
    (field, text)
}

/// Unix seconds as `2026-01-05T10:00:00.000Z`.
pub(crate) fn iso(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years (Howard Hinnant's civil_from_days).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let day = day - (153 * shifted + 2) / 5 + 1;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// FNV-1a: the same in every process and every version, which hashers of hash maps don't promise.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (value ^ (value >> 31)).wrapping_add(SPREAD)
}

fn digits(out: &mut String, mut value: u64, count: usize) {
    let mut text = [b'0'; LENGTH];
    for digit in text.iter_mut().take(count).rev() {
        *digit = ALPHABET[usize::try_from(value % 62).unwrap_or(0)];
        value /= 62;
    }
    out.extend(text.iter().take(count).map(|byte| char::from(*byte)));
}

/// The inverse of an odd number modulo 2⁶⁴ (Newton: each step doubles the right bits).
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_named_after_their_paths() {
        for (template, object, entity, prefix) in [
            ("/provider-deployments", "provider.deployment", "provider_deployment", "pde"),
            ("/sessions", "session", "session", "ses"),
            ("/identities", "identity", "identity", "ide"),
            ("/callbacks/{callbackId}/instances", "callback.instance", "callback_instance", "cin"),
            ("/chat/workspaces", "chat.workspace", "chat_workspace", "cwo"),
            ("/", "", "", "obj"),
        ] {
            let (object, entity, prefix) = (object.into(), entity.into(), prefix.into());
            assert_eq!(Naming::of(template), Naming { object, entity, prefix }, "{template}");
        }
    }

    #[test]
    fn an_id_gives_its_index_back_to_its_own_collection_alone() {
        let naming = Naming::of("/provider-deployments");
        for number in [0, 1, 56, 57, 1_000_000, u64::MAX] {
            let text = id(&naming, "/provider-deployments", number);
            assert_eq!(text.len(), 24, "{text}");
            assert_eq!(index(&naming, "/provider-deployments", &text), Some(number));
            assert_eq!(index(&naming, "/elsewhere", &text).filter(|other| *other < 1000), None);
            assert_eq!(index(&naming, "/provider-deployments", &text[..23]), None);
        }
        for text in ["", "pde_", "pde_zzzzzzzzzzzzzzzzzzzz", "pde_é", "ses_00000000000000000000"] {
            assert_eq!(index(&naming, "/provider-deployments", text), None, "{text}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_767_607_200, "2026-01-05T10:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
        ] {
            assert_eq!(iso(seconds), text);
        }
    }

    #[test]
    fn a_provider_deployment_is_shaped_as_the_api_shapes_it() {
        let naming = Naming::of("/provider-deployments");
        let item = Value::Object(item(&naming, "/provider-deployments", 0));
        insta::assert_json_snapshot!(item);
    }
}

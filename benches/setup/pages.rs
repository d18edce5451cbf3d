//! Pages, and the secret that must not be in them.

/// What a page must not tell.
pub(crate) const SECRET: &str = "metorial_sk_4mXq9Zt2LhVb8RsK1wNcYp6DgJfE3aTu";

/// A list page of about `length` bytes, with `text` in each of its items.
pub(crate) fn json(length: usize, text: &str) -> String {
    let mut page = String::from("{\"object\":\"list\",\"items\":[");
    for at in 0.. {
        page.push_str(&format!(
            "{{\"object\":\"provider\",\"id\":\"pro_{at:016}\",\"name\":\"Provider {at}\",\"description\":\"{text}\",\
             \"metadata\":{{}},\"created_at\":\"2026-01-01T00:00:00.000Z\"}},"
        ));
        if page.len() >= length {
            break;
        }
    }
    page.push_str("],\"pagination\":{\"has_more_before\":false,\"has_more_after\":true}}");
    page
}

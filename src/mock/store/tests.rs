use serde_json::json;

use super::*;

const PATH: &str = "/provider-deployments";

fn naming() -> Naming {
    Naming::of(PATH)
}

fn ids(store: &Store, request: &PageRequest) -> (Vec<String>, bool, bool) {
    let naming = naming();
    let page = store.page(Collection { path: PATH, naming: &naming }, request, |_| true);
    let ids = page.items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect();
    (ids, page.more_before, page.more_after)
}

fn ask(limit: usize, descending: bool, cursor: Option<Cursor>) -> PageRequest {
    PageRequest { limit, descending, cursor }
}

fn changes(json: serde_json::Value) -> Item {
    json.as_object().expect("an object").clone()
}

#[test]
fn a_list_is_walked_either_way_from_either_end() {
    let store = Store::new(7);
    let (all, before, after) = ids(&store, &ask(100, false, None));
    assert_eq!((all.len(), before, after), (7, false, false));
    for descending in [false, true] {
        let mut expected = all.clone();
        if descending {
            expected.reverse();
        }
        let (mut walked, mut cursor) = (Vec::new(), None);
        loop {
            let (page, before, more) = ids(&store, &ask(3, descending, cursor.clone()));
            assert_eq!(before, cursor.is_some());
            walked.extend(page.clone());
            if !more {
                break;
            }
            cursor = page.last().cloned().map(Cursor::After);
        }
        assert_eq!(walked, expected);
        let back = ids(&store, &ask(3, descending, Some(Cursor::Before(expected[5].clone()))));
        assert_eq!(back, (expected[2..5].to_vec(), true, true));
        let start = ids(&store, &ask(3, descending, Some(Cursor::Before(expected[2].clone()))));
        assert_eq!(start, (expected[..2].to_vec(), false, true));
    }
    let unknown = ids(&store, &ask(3, false, Some(Cursor::After("pde_unknown".into()))));
    assert_eq!(unknown, (Vec::new(), false, false));
}

#[test]
fn writes_show_in_lists_and_gets() {
    let store = Store::new(2);
    let naming = naming();
    let of = Collection { path: PATH, naming: &naming };
    let (seeded, ..) = ids(&store, &ask(9, false, None));
    let made = store.create(of, changes(json!({"name": "Mine", "id": "pde_forged"})));
    let id = made["id"].as_str().expect("an id").to_owned();
    assert_ne!(id, "pde_forged");
    assert_eq!(store.get(of, &id), Some(made));
    let chosen = store.upsert(of, "chosen", changes(json!({"name": "Chosen"})));
    assert_eq!(store.get(of, "chosen"), Some(chosen));
    let changed = store.update(of, &seeded[1], changes(json!({"name": "New"}))).expect("there");
    assert_eq!((changed["name"].clone(), store.get(of, &seeded[1])), (json!("New"), Some(changed)));
    assert!(store.delete(of, &seeded[0]).is_some());
    assert!(store.delete(of, &seeded[0]).is_none());
    assert!(store.update(of, &seeded[0], Item::new()).is_none());
    let expected = vec![seeded[1].clone(), id, "chosen".to_owned()];
    assert_eq!(ids(&store, &ask(9, false, None)).0, expected);
    let elsewhere = Collection { path: "/callbacks/x/provider-deployments", naming: &naming };
    assert!(store.get(elsewhere, &seeded[1]).is_none());
    assert_eq!(store.update_single(of, Item::new())["object"], "provider.deployment");
}

#[test]
fn only_so_much_is_remembered() {
    let store = Store::new(1);
    let naming = naming();
    let of = Collection { path: PATH, naming: &naming };
    let (seeded, ..) = ids(&store, &ask(1, false, None));
    store.update(of, &seeded[0], changes(json!({"name": "New"})));
    for _ in 0..MAX_WRITES {
        store.create(of, Item::new());
    }
    assert_eq!(store.get(of, &seeded[0]).expect("seeded")["name"], "Slack 1");
    let large = "x".repeat(MAX_BYTES / 4);
    for _ in 0..6 {
        store.create(of, changes(json!({"name": large})));
    }
    let writes = store.writes.lock();
    assert!(writes.bytes <= MAX_BYTES && writes.order.len() < 6, "{} bytes", writes.bytes);
    let kept: usize = writes.collections.values().flat_map(|slots| slots.values()).map(|w| w.bytes).sum();
    assert_eq!(kept, writes.bytes);
}

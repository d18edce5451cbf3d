//! The store: seeded lists that are computed, and what was written over them.
//!
//! Reading costs no memory. Writes are kept over the seed, so many and so large at most; beyond that the oldest is
//! forgotten and its item is again as it was seeded.

use std::collections::{BTreeMap, HashMap, VecDeque};

use parking_lot::Mutex;

use crate::mock::page::{Cursor, PageRequest};
use crate::mock::seed::{self, Item, Naming};
use crate::time;

/// Every collection of the API, by its concrete path.
#[derive(Debug)]
pub(crate) struct Store {
    /// Items that each collection begins with.
    items: u64,
    writes: Mutex<Writes>,
}

/// Written items kept at most, and their bytes.
const MAX_WRITES: usize = 10_000;
const MAX_BYTES: usize = 32 << 20;

#[derive(Debug, Default)]
struct Writes {
    collections: HashMap<String, BTreeMap<u64, Written>>,
    /// First writes of each slot, oldest first.
    order: VecDeque<(String, u64)>,
    bytes: usize,
    created: u64,
}

/// What was written to a slot; a deleted one holds no item.
#[derive(Debug)]
struct Written {
    item: Option<Item>,
    bytes: usize,
}

/// A page of a list.
#[derive(Debug, PartialEq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    pub(crate) more_before: bool,
    pub(crate) more_after: bool,
}

/// Which collection: its concrete path, and what its items are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Collection<'a> {
    pub(crate) path: &'a str,
    pub(crate) naming: &'a Naming,
}

impl Collection<'_> {
    /// Slots below `items` are seeded. Other ids of the caller's own choice lie in the upper half.
    fn slot(&self, id: &str) -> u64 {
        let own = seed::index(self.naming, self.path, id).filter(|index| *index < FOREIGN);
        own.unwrap_or_else(|| seed::hash(id.as_bytes()) | FOREIGN)
    }
}

const FOREIGN: u64 = 1 << 63;

impl Store {
    pub(crate) fn new(items: usize) -> Self {
        Self {
            items: u64::try_from(items).unwrap_or(u64::MAX).min(FOREIGN),
            writes: Mutex::new(Writes::default()),
        }
    }

    pub(crate) fn get(&self, of: Collection<'_>, id: &str) -> Option<Item> {
        let slot = of.slot(id);
        let written = self.writes.lock().read(of.path, slot);
        match written {
            Some(item) => item,
            None => (slot < self.items).then(|| seed::item(of.naming, of.path, slot)),
        }
    }

    /// The one object behind a path that names no item, such as `/instance`.
    pub(crate) fn single(&self, of: Collection<'_>) -> Item {
        let written = self.writes.lock().read(of.path, 0);
        written.flatten().unwrap_or_else(|| seed::item(of.naming, of.path, 0))
    }

    /// Merges `changes` into that one object.
    pub(crate) fn update_single(&self, of: Collection<'_>, changes: Item) -> Item {
        let item = merge(self.single(of), changes);
        self.writes.lock().write(of.path, 0, Some(item.clone()));
        item
    }

    pub(crate) fn create(&self, of: Collection<'_>, changes: Item) -> Item {
        let mut writes = self.writes.lock();
        let slot = self.items.saturating_add(writes.created).min(FOREIGN - 1);
        writes.created += 1;
        let blank = seed::blank(of.naming, seed::id(of.naming, of.path, slot), &seed::iso(time::unix_now()));
        let item = merge(blank, changes);
        writes.write(of.path, slot, Some(item.clone()));
        item
    }

    pub(crate) fn update(&self, of: Collection<'_>, id: &str, changes: Item) -> Option<Item> {
        let item = merge(self.get(of, id)?, changes);
        self.writes.lock().write(of.path, of.slot(id), Some(item.clone()));
        Some(item)
    }

    /// Updates an item, or creates it under the id that the caller chose.
    pub(crate) fn upsert(&self, of: Collection<'_>, id: &str, changes: Item) -> Item {
        let now = seed::iso(time::unix_now());
        let item = self.get(of, id).unwrap_or_else(|| seed::blank(of.naming, id.to_owned(), &now));
        let item = merge(item, changes);
        self.writes.lock().write(of.path, of.slot(id), Some(item.clone()));
        item
    }

    pub(crate) fn delete(&self, of: Collection<'_>, id: &str) -> Option<Item> {
        let item = self.get(of, id)?;
        self.writes.lock().write(of.path, of.slot(id), None);
        Some(item)
    }

    /// A page of the items that `keep` keeps.
    ///
    /// An unknown id in the cursor is no error: the page is empty.
    pub(crate) fn page(
        &self,
        of: Collection<'_>,
        request: &PageRequest,
        keep: impl Fn(&Item) -> bool,
    ) -> Page {
        let writes = self.writes.lock();
        let none = BTreeMap::new();
        let written = writes.collections.get(of.path).unwrap_or(&none);
        let gone = |slot: &u64| written.get(slot).is_some_and(|written| written.item.is_none());
        let seeded = (0..self.items).filter(|slot| !gone(slot));
        let created = written.range(self.items..).map(|(slot, _)| *slot).filter(|slot| !gone(slot));
        let slots = seeded.chain(created);
        let before = matches!(request.cursor, Some(Cursor::Before(_)));
        let slots: Box<dyn Iterator<Item = u64> + '_> =
            if request.descending == before { Box::new(slots) } else { Box::new(slots.rev()) };
        let mut slots = slots.peekable();
        let cursor = match &request.cursor {
            Some(Cursor::After(id) | Cursor::Before(id)) => {
                let cursor = of.slot(id);
                // Drops all up to and including the cursor; nothing is left where it is unknown.
                slots.by_ref().any(|slot| slot == cursor)
            }
            None => false,
        };
        let load = |slot: u64| match written.get(&slot) {
            Some(written) => written.item.clone(),
            None => Some(seed::item(of.naming, of.path, slot)),
        };
        let mut items: Vec<_> =
            slots.filter_map(load).filter(|item| keep(item)).take(request.limit + 1).collect();
        let more = items.len() > request.limit;
        items.truncate(request.limit);
        if before {
            items.reverse();
            return Page { items, more_before: more, more_after: cursor };
        }
        Page { items, more_before: cursor, more_after: more }
    }
}

impl Writes {
    /// `None`: never written. `Some(None)`: deleted.
    fn read(&self, path: &str, slot: u64) -> Option<Option<Item>> {
        self.collections.get(path)?.get(&slot).map(|written| written.item.clone())
    }

    fn write(&mut self, path: &str, slot: u64, item: Option<Item>) {
        let bytes = path.len() + item.as_ref().map_or(0, size);
        self.bytes += bytes;
        let collection = self.collections.entry(path.to_owned()).or_default();
        match collection.insert(slot, Written { item, bytes }) {
            Some(old) => self.bytes -= old.bytes,
            None => self.order.push_back((path.to_owned(), slot)),
        }
        while self.order.len() > MAX_WRITES || self.bytes > MAX_BYTES {
            let Some((path, slot)) = self.order.pop_front() else { return };
            self.forget(&path, slot);
        }
    }

    fn forget(&mut self, path: &str, slot: u64) {
        let Some(collection) = self.collections.get_mut(path) else { return };
        if let Some(old) = collection.remove(&slot) {
            self.bytes -= old.bytes;
        }
        if collection.is_empty() {
            self.collections.remove(path);
        }
    }
}

/// `changes` over `item`; what the API decides itself stays.
fn merge(mut item: Item, changes: Item) -> Item {
    let fixed = ["object", "id", "created_at", "updated_at"];
    item.extend(changes.into_iter().filter(|(name, _)| !fixed.contains(&name.as_str())));
    item.insert("updated_at".into(), seed::iso(time::unix_now()).into());
    item
}

fn size(item: &Item) -> usize {
    serde_json::to_vec(item).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests;

//! Places for requests in flight, of which a reload may make more or fewer: two counts, because each request takes one.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places there are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    most: AtomicUsize,
    taken: AtomicUsize,
    /// Those of them that requests with a body have.
    with_body: AtomicUsize,
}

/// One of them, until it is dropped; taken by a worker of its own handle to all.
#[derive(Debug)]
pub struct Place {
    places: Rc<Places>,
    has_body: bool,
}

impl Places {
    /// So many.
    pub fn new(most: usize) -> Self {
        let (most, taken, with_body) = (AtomicUsize::new(most), AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Counts { most, taken, with_body }))
    }

    /// So many from now on. Whoever has a place keeps it.
    pub fn resize(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// Takes one, where one is free. Requests with a body leave a quarter to those without.
    pub fn take(self: &Rc<Self>, has_body: bool) -> Option<Place> {
        let most = self.0.most.load(Ordering::Relaxed);
        if !take(&self.0.taken, most) {
            return None;
        }
        let mut place = Place { places: self.clone(), has_body: false };
        place.has_body = has_body && take(&self.0.with_body, (most - most / 4).max(1));
        (place.has_body == has_body).then_some(place)
    }
}

/// One more, of at most so many.
fn take(taken: &AtomicUsize, most: usize) -> bool {
    let more = |taken: usize| (taken < most).then_some(taken + 1);
    taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.taken.fetch_sub(1, Ordering::Relaxed);
        if self.has_body {
            self.places.0.with_body.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_with_a_body_leave_a_quarter_to_those_without() {
        for (most, with_body) in [(1, 1), (2, 2), (4, 3), (4096, 3072)] {
            let places = Rc::new(Places::new(most));
            let held: Vec<_> = (0..most).map_while(|_| places.take(true)).collect();
            assert_eq!(held.len(), with_body);
            let rest: Vec<_> = (0..most).map_while(|_| places.take(false)).collect();
            assert_eq!(rest.len(), most - with_body);
            assert!(places.take(true).is_none() && places.take(false).is_none());
            drop((held, rest));
            assert!(places.take(true).is_some());
        }
    }

    #[test]
    fn places_that_are_taken_away_stay_with_whoever_has_them() {
        let places = Rc::new(Places::new(3));
        let mut held: Vec<_> = (0..3).map(|_| places.take(false).expect("a place")).collect();
        places.resize(1);
        for left in [2, 1] {
            held.truncate(left);
            assert!(places.take(false).is_none(), "{left} are still held, of 1");
        }
        held.clear();
        let one = places.take(false).expect("a place");
        assert!(places.take(false).is_none());
        places.resize(2);
        assert!(places.take(false).is_some());
        drop(one);
    }
}

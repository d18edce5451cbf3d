//! Reads the keys of a section one by one. A fault is noted at its key and a default goes on in its place, so that one
//! reading finds every fault; what it built is then thrown away.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Variables;
use super::fault::{Fault, Wrong};
use super::raw;
use super::value::{Field, Section, Size, Span};
use crate::domain::quota::Quota;

/// Longest duration that is taken anywhere.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest, where zero makes no sense.
pub(super) const MOMENT: Duration = Duration::from_millis(1);

/// What a reading knows and has found.
pub(super) struct Context<'v> {
    pub(super) variables: &'v Variables,
    /// Variables that a secret was read from.
    pub(super) read: BTreeSet<String>,
    /// Files that secrets were to be read from.
    pub(super) files: Vec<PathBuf>,
    pub(super) errors: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

/// A place in the configuration, whose keys are read through it.
pub(super) struct Reader<'c, 'v> {
    pub(super) context: &'c mut Context<'v>,
    pub(super) path: String,
}

impl<'v> Reader<'_, 'v> {
    /// The place `key` (or `[index]`) below this one.
    pub(super) fn at(&mut self, key: &str) -> Reader<'_, 'v> {
        let path = self.path_of(key);
        Reader { context: self.context, path }
    }

    /// The entry `index` of the list `key` below this one.
    pub(super) fn entry(&mut self, key: &str, index: usize) -> Reader<'_, 'v> {
        self.at(&format!("{key}[{index}]"))
    }

    /// The path of `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        let dot = if self.path.is_empty() || key.is_empty() { "" } else { "." };
        format!("{}{dot}{key}", self.path)
    }

    /// Notes an error at `key`.
    pub(super) fn refuse(&mut self, key: &str, wrong: Wrong) {
        self.context.errors.push(Fault::new(self.path_of(key), wrong));
    }

    /// Notes a warning at `key`.
    pub(super) fn warn(&mut self, key: &str, wrong: Wrong) {
        self.context.warnings.push(Fault::new(self.path_of(key), wrong));
    }

    /// A value, if there is one of the right type.
    pub(super) fn optional<T>(&mut self, key: &str, field: Field<T>) -> Option<T> {
        match field {
            Field::Absent => None,
            Field::Set(value) => Some(value),
            Field::Wrong(wrong) => {
                self.refuse(key, wrong);
                None
            }
        }
    }

    /// A value that has a default.
    pub(super) fn value<T>(&mut self, key: &str, field: Field<T>, default: T) -> T {
        self.optional(key, field).unwrap_or(default)
    }

    /// A value without a default; `cure` says how to write it.
    pub(super) fn required<T>(&mut self, key: &str, field: Field<T>, cure: &str) -> Option<T> {
        self.present(key, &field, cure);
        self.optional(key, field)
    }

    /// Refuses a key that is not there; `cure` says how to write it.
    pub(super) fn present<T>(&mut self, key: &str, field: &Field<T>, cure: &str) {
        if matches!(field, Field::Absent) {
            self.refuse(key, Wrong::new("is missing", cure));
        }
    }

    /// What `check` makes of a value, if there is one and it passes.
    pub(super) fn checked<T, U>(
        &mut self,
        key: &str,
        field: Field<T>,
        check: impl FnOnce(T) -> Result<U, Wrong>,
    ) -> Option<U> {
        let value = self.optional(key, field)?;
        check(value).map_err(|wrong| self.refuse(key, wrong)).ok()
    }

    /// The entries of a list that pass `check`; `None` where there is no list.
    pub(super) fn list<T, U>(
        &mut self,
        key: &str,
        field: Field<Vec<Field<T>>>,
        mut check: impl FnMut(T) -> Result<U, Wrong>,
    ) -> Option<Vec<U>> {
        let entries = self.optional(key, field)?.into_iter().enumerate();
        Some(
            entries
                .filter_map(|(index, entry)| self.entry(key, index).checked("", entry, &mut check))
                .collect(),
        )
    }

    /// The keys of a section, if there is one; unknown ones are refused.
    pub(super) fn table<T>(&mut self, key: &str, field: Field<Section<T>>) -> Option<T> {
        let section = self.optional(key, field)?;
        let mut here = self.at(key);
        for (name, wrong) in section.unknown {
            here.refuse(&name, wrong);
        }
        Some(section.keys)
    }

    /// The keys of a section that may be left out.
    pub(super) fn section<T: Default>(&mut self, key: &str, field: Field<Section<T>>) -> T {
        self.table(key, field).unwrap_or_default()
    }

    fn within<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        field: Field<T>,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let check = |value| match range.contains(&value) {
            true => Ok(value),
            false => {
                let (least, most) = (range.start(), range.end());
                Err(Wrong::new(format!("{value} is out of range"), format!("write {least} to {most}")))
            }
        };
        self.checked(key, field, check).unwrap_or(default)
    }

    /// A number between 0 and 1.
    pub(super) fn share(&mut self, key: &str, field: Field<f64>, default: f64) -> f64 {
        self.within(key, field, default, 0.0..=1.0)
    }

    /// A whole number, of the type its range has.
    pub(super) fn count<T>(&mut self, key: &str, field: Field<u64>, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + TryInto<u64> + TryFrom<u64>,
    {
        let wide = |number: T| number.try_into().unwrap_or(u64::MAX);
        let number = self.within(key, field, wide(default), wide(*range.start())..=wide(*range.end()));
        T::try_from(number).unwrap_or(default)
    }

    /// A duration.
    pub(super) fn duration(
        &mut self,
        key: &str,
        field: Field<Span>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let (least, most) = range.into_inner();
        self.within(key, field, Span(default), Span(least)..=Span(most)).0
    }

    /// A number of bytes, at least one.
    pub(super) fn size(&mut self, key: &str, field: Field<Size>, default: u64, most: u64) -> u64 {
        self.within(key, field, Size(default), Size(1)..=Size(most)).0
    }

    /// A number of bytes that fits into memory.
    pub(super) fn length(&mut self, key: &str, field: Field<Size>, default: u64, most: u64) -> usize {
        usize::try_from(self.size(key, field, default, most)).unwrap_or(usize::MAX)
    }

    /// `{ requests, window }`, both of them.
    pub(super) fn quota(&mut self, key: &str, field: Field<Section<raw::Quota>>) -> Option<Quota> {
        let raw = self.table(key, field)?;
        let mut here = self.at(key);
        let cure = "write both: { requests = 1000, window = \"10s\" }";
        here.present("requests", &raw.requests, cure);
        here.present("window", &raw.window, cure);
        // At most one request a nanosecond, so that the time between two never rounds to nothing.
        let requests = here.count("requests", raw.requests, 1, 1..=10_000_000);
        let window = here.duration("window", raw.window, DAY, Duration::from_millis(10)..=DAY);
        Some(Quota { requests, window })
    }
}

//! What the proxy says about itself: figures for a scraper, lines for a reader, spans for a collector.
//!
//! Neither ever carries a key, a secret, an IP or a raw path: routes are templates, environments and budgets are the
//! operator's own names, everything else is one of a list written down here.

pub mod durations;
pub mod exposition;
pub mod gauge;
pub mod health;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod tally;
pub mod traces;

//! How the API is connected to: what the workers' pools are made of.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, Scheme};

use super::StartError;
use crate::config::{Http2, Upstream as Config};
use crate::edge::outbox::Outbox;
use crate::edge::tls;
use crate::edge::upstream::{Connector, Upstream};

/// The connector, and all that a pool depends on.
pub(super) struct Wire {
    connector: Connector,
    like: Like,
}

#[derive(PartialEq)]
struct Like {
    scheme: Scheme,
    authority: Authority,
    http2: Http2,
    connect_timeout: Duration,
    idle_connections: usize,
    idle_timeout: Duration,
    ca: Option<(PathBuf, Vec<u8>)>,
}

impl Wire {
    pub(super) fn of(config: &Config) -> Result<Self, StartError> {
        let secure = config.scheme == Scheme::HTTPS;
        let place = "upstream.ca_certificate";
        let ca = match &config.ca_certificate {
            // Where it cannot be read the error is told by whoever reads it next.
            Some(path) if secure => Some((path.clone(), std::fs::read(path).unwrap_or_default())),
            _ => None,
        };
        let tls = match secure {
            true => Some(
                tls::client(config.http2, config.ca_certificate.as_deref())
                    .map_err(|error| StartError::new(place, error))?,
            ),
            false => None,
        };
        let port = config.authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = config.authority.host();
        let connector = Connector::new(host, port, tls, config.http2, config.connect_timeout)
            .map_err(|error| StartError::new("upstream.url", error))?;
        let like = Like {
            scheme: config.scheme.clone(),
            authority: config.authority.clone(),
            http2: config.http2,
            connect_timeout: config.connect_timeout,
            idle_connections: config.idle_connections,
            idle_timeout: config.idle_timeout,
            ca,
        };
        Ok(Self { connector, like })
    }

    /// Whether the pools made of `other` do as well.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.like == other.like
    }

    /// Whether `pool` is one of its own.
    pub(super) fn made(&self, pool: &Upstream) -> bool {
        pool.is_over(&self.connector)
    }

    /// The pool of one of so many workers, whose outbox that is.
    pub(super) fn pool(&self, workers: usize, outbox: &Outbox) -> Upstream {
        Upstream::new(
            self.connector.clone(),
            outbox.clone(),
            self.like.scheme.clone(),
            self.like.authority.clone(),
            self.like.idle_connections.div_ceil(workers),
            self.like.idle_timeout,
        )
    }
}

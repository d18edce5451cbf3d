//! `health`: is a running proxy ready? For images without curl.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use metorial_proxy::edge::admin::health;

use super::{print, refuse_one, runtime, say};

pub(super) fn run(admin: Option<SocketAddr>) -> ExitCode {
    let address = match admin.map_or_else(from_environment, Ok) {
        Ok(address) => address,
        Err(error) => return refuse_one(&error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(health::check(address)) {
        Ok(()) => {
            print("ready\n");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("metorial-proxy: {error}"));
            ExitCode::FAILURE
        }
    }
}

pub(super) fn from_environment() -> Result<SocketAddr, String> {
    match std::env::var("METORIAL_PROXY_ADMIN").ok().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|_| {
            format!("METORIAL_PROXY_ADMIN: {text:?} is no address; write host:port, e.g. 127.0.0.1:9090")
        }),
        None => Ok((Ipv4Addr::LOCALHOST, 9090).into()),
    }
}

//! Sockets that the service manager opened for us and passed on (`LISTEN_FDS`, sd_listen_fds(3)).
//!
//! They outlive the process, so that while it restarts callers wait in the kernel's queue instead of being refused.

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::SockRef;

/// `FileDescriptorName=` of sockets for `server.listen`, in its order.
pub const PROXY: &str = "proxy";
/// … of the one for `server.admin`.
pub const ADMIN: &str = "admin";

/// What was passed and is not taken yet.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<(&'static str, TcpListener)>,
}

impl Passed {
    /// Those of this process. It changes the environment: to be called before there are threads.
    ///
    /// # Errors
    /// What is not a listening TCP socket, or is for nothing here.
    pub fn from_env() -> Result<Self, String> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for at in 0..passed.len() {
            let name = purpose(names.next().unwrap_or_default())?;
            let socket = passed.take_tcp_listener(at).map_err(|error| error.to_string())?;
            let Some(socket) = socket else { continue };
            if !SockRef::from(&socket).is_listener().unwrap_or(false) {
                return Err(format!(
                    "socket {at} ({name}) does not listen: it is to be one of ListenStream="
                ));
            }
            sockets.push((name, socket));
        }
        Ok(Self { sockets })
    }

    /// The first socket for `purpose` that is left, to stand in for `configured`.
    ///
    /// # Errors
    /// It is open to others where the configuration says loopback, which callers without a key may rely on.
    pub fn take(&mut self, purpose: &str, configured: SocketAddr) -> Result<Option<TcpListener>, String> {
        let Some(at) = self.sockets.iter().position(|(name, _)| *name == purpose) else { return Ok(None) };
        let (_, socket) = self.sockets.remove(at);
        let address = socket.local_addr().map_err(|error| format!("the socket that was passed: {error}"))?;
        let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        if is_loopback(configured) && !is_loopback(address) {
            return Err(format!(
                "the socket that was passed is open to others ({address}), and the configuration says \
                 {configured}: write the same address in both"
            ));
        }
        Ok(Some(socket))
    }

    /// Once all are taken that the configuration has a place for.
    ///
    /// # Errors
    /// One is left, where callers would wait for nobody.
    pub fn is_spent(&self) -> Result<(), String> {
        match self.sockets.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "more sockets named {name} were passed than there are addresses in the configuration: add them to \
                 server.listen, or pass fewer (server.admin is one)"
            )),
        }
    }
}

/// systemd names a socket after its unit where the unit names none, systemd-socket-activate `unknown`.
fn purpose(name: &str) -> Result<&'static str, String> {
    match name {
        ADMIN => Ok(ADMIN),
        PROXY | "" | "unknown" => Ok(PROXY),
        unit if unit.ends_with(".socket") => Ok(PROXY),
        _ => Err(format!("a socket is named {name:?}: write FileDescriptorName={PROXY} or {ADMIN}")),
    }
}

//! An address that answers nothing: no refusal, no connection.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

/// A listener whose queue is full, so that the kernel leaves whoever comes without an answer. As long as this lives.
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _sockets: Vec<Socket>,
}

impl BlackHole {
    /// At `address`, where port 0 is any.
    pub(crate) fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None);
        let listener = socket()?;
        listener.bind(&address.into())?;
        listener.listen(0)?;
        let bound = listener.local_addr()?;
        let mut sockets = vec![listener];
        for _ in 0..3 {
            let filler = socket()?;
            filler.set_nonblocking(true)?;
            // Under way, or never to end: either takes a place.
            filler.connect(&bound).ok();
            sockets.push(filler);
        }
        let address = bound.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, _sockets: sockets })
    }
}

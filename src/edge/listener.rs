//! Listening: one address, one socket per worker (`SO_REUSEPORT`), and yet never two instances.
//!
//! With `SO_REUSEPORT` the kernel gives each connection to one worker for its life. But it would also let a second
//! instance of the same user bind the same address and take half of the connections. So the first socket is bound
//! *without* the option, which fails where anybody else listens; only then is it switched on, and the others join.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

const BACKLOG: i32 = 4096;

/// So much of what was written may wait in the kernel without being sent. It says that it takes more only when half of that has
/// gone; with its own buffer of megabytes it would have to be a third of them, and who reads slowly would seem to take nothing.
const UNSENT: u32 = 64 * 1024;

/// Binds `address` for `workers` workers; port 0 lets the kernel choose one port for all.
///
/// # Errors
/// The kernel's: in use, not ours, not allowed.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let first = socket(address)?;
    first.bind(&address.into())?;
    // Between two sockets that do not listen yet, SO_REUSEADDR alone finds no conflict; this one decides it.
    first.set_reuse_port(true)?;
    first.listen(BACKLOG)?;
    let first = TcpListener::from(first);
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        let socket = socket(bound)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        socket.listen(BACKLOG)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

/// For `workers` workers, a socket that was bound by somebody else: each has a handle of its own to the one queue.
///
/// # Errors
/// The kernel's: out of file descriptors.
pub fn share(socket: TcpListener, workers: usize) -> io::Result<Vec<TcpListener>> {
    socket.set_nonblocking(true)?;
    limit_unsent(SockRef::from(&socket));
    let mut listeners = (1..workers).map(|_| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
    listeners.push(socket);
    Ok(listeners)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Restarting must not wait for the connections of the former instance to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    limit_unsent(SockRef::from(&socket));
    Ok(socket)
}

/// Connections inherit it from the socket that they are accepted by. Where a kernel has no `TCP_NOTSENT_LOWAT`, only who reads
/// slowly is the worse for it.
fn limit_unsent(socket: SockRef<'_>) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(UNSENT).ok();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (socket, UNSENT);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures_util::FutureExt;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn whoever_reads_slowly_is_seen_to_read() {
        const STEP: usize = 16 * 1024;
        for passed in [false, true] {
            let address = "127.0.0.1:0".parse().expect("an address");
            let listener = match passed {
                true => share(TcpListener::bind(address).expect("binds"), 1).expect("shares"),
                false => bind(address, 1).expect("binds"),
            };
            let listener = tokio::net::TcpListener::from_std(listener.into_iter().next().expect("one"));
            let listener = listener.expect("listens");
            let address = listener.local_addr().expect("an address");
            let (peer, ours) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            let (peer, (ours, _)) = (peer.expect("connected"), ours.expect("accepted"));
            let mut peer = peer.into_std().expect("a socket");
            peer.set_nonblocking(false).expect("blocks");
            while ours.writable().now_or_never().is_some() {
                while ours.try_write(&[b'x'; STEP]).is_ok() {}
                yield_now().await;
            }
            let mut read = 0;
            while ours.writable().now_or_never().is_none() {
                peer.read_exact(&mut [0; STEP]).expect("there is more");
                read += STEP;
                yield_now().await;
            }
            assert!(read <= 512 * 1024, "not before {read} bytes were read; passed: {passed}");
        }
    }

    #[test]
    fn workers_share_an_address_and_a_second_instance_is_refused() {
        let listeners = bind("127.0.0.1:0".parse().expect("an address"), 4).expect("binds");
        let address = listeners[0].local_addr().expect("an address");
        assert!(listeners.iter().all(|listener| listener.local_addr().is_ok_and(|other| other == address)));
        let second = bind(address, 4).expect_err("in use");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let everywhere = SocketAddr::new("0.0.0.0".parse().expect("an address"), address.port());
        assert!(bind(everywhere, 1).is_err(), "nor by way of the wildcard");
        drop(listeners);
        assert!(bind(address, 2).is_ok(), "and it is free once the first has gone");
    }
}

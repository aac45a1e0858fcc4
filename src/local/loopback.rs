//! Servers for this machine alone: the port they listen on, and who may ask.
//!
//! A browser sends what any page asks for, to loopback too. It says where the page is from (`Origin`), and to which host it
//! thinks it speaks (`Host`), which gives away a page whose name leads here by a trick.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};

use anyhow::{Error, Result};
use tokio::sync::oneshot;

use crate::error::input;

/// What this machine is called by itself.
pub(super) const OWN_HOSTS: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// Listens on a port of loopback, without blocking; 0: any that is free.
pub(super) fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            input(format!("port {port} of this machine is in use: give another one, or 0 for any that is free"))
        }
        ErrorKind::PermissionDenied => {
            input(format!("port {port} of this machine is not for every user: give one above 1023"))
        }
        _ => Error::new(error).context(format!("cannot listen on port {port} of this machine")),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A server in a thread of its own, which ends when this is dropped.
pub(super) struct Serving {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Starts a server that listens at an address and ends when the channel that it is given does.
    pub(super) fn start(
        name: &str,
        address: SocketAddr,
        serve: impl FnOnce(oneshot::Receiver<()>) + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || serve(stopped))?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Whether an origin, as SCHEME://HOST or SCHEME://HOST:PORT, is this machine.
pub(super) fn is_own_origin(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, place)| is_own_place(place))
}

/// Whether HOST or HOST:PORT is this machine.
pub(super) fn is_own_place(place: &str) -> bool {
    let host = match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => place,
    };
    OWN_HOSTS.iter().any(|own| host.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_all_others() {
        for own in ["http://127.0.0.1:9944", "http://localhost", "https://LOCALHOST:1", "http://[::1]", "ws://[::1]:80"]
        {
            assert!(is_own_origin(own), "{own}");
        }
        let others = ["http://evil.example", "http://127.0.0.1.evil.example:80", "null", "", "127.0.0.1", "http://"];
        for other in others.into_iter().chain(["http://localhost@evil.example", "file://", "http://[::2]", "http://1"])
        {
            assert!(!is_own_origin(other), "{other}");
        }
        assert!(is_own_place("127.0.0.1:80") && is_own_place("LocalHost") && is_own_place("[::1]:1"));
        assert!(!is_own_place("evil.example:80") && !is_own_place("") && !is_own_place("localhost:x"));
    }
}

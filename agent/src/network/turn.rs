//! Nodes that start at the same moment choose their bridges and pod CIDRs one after the other: each looks at what is
//! there, and then makes what the next one must see.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

/// An abstract name: the kernel keeps these apart for each network namespace, which is just what is chosen in, and
/// lets go of them with the process that holds them.
const NAME: &[u8] = b"podling/network";
/// A node chooses within milliseconds. Later it is not a node that has the name, and nobody may keep this one from
/// starting.
const DEADLINE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(5);

/// It is this node's turn while this lives.
#[derive(Debug)]
pub(super) struct Turn {
    _name: Option<UnixListener>,
}

impl Turn {
    /// Waits for it; blocks.
    pub(super) fn wait() -> Self {
        let end = Instant::now() + DEADLINE;
        loop {
            let name = SocketAddr::from_abstract_name(NAME)
                .and_then(|address| UnixListener::bind_addr(&address));
            match name {
                Ok(name) => return Self { _name: Some(name) },
                Err(error) if Instant::now() > end => {
                    tracing::debug!(%error, "does not wait for its turn to choose a network");
                    return Self { _name: None };
                }
                Err(_) => thread::sleep(STEP),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time() {
        static INSIDE: AtomicU32 = AtomicU32::new(0);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                thread::spawn(|| {
                    let turn = Turn::wait();
                    assert_eq!(INSIDE.fetch_add(1, Ordering::SeqCst), 0);
                    thread::sleep(STEP);
                    INSIDE.fetch_sub(1, Ordering::SeqCst);
                    drop(turn);
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("nobody else was inside");
        }
    }
}

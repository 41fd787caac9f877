//! A TCP connection to an endpoint by name: every address is tried, and the first that answers is taken.
//!
//! Names are resolved as all of the node does ([`podling_images::names`]): libc's resolver does not work in a
//! statically linked program.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper_util::rt::TokioIo;
use podling_images::names;
use tokio::net::TcpStream;
use tonic::transport::Uri;

/// An address that has not answered for so long is joined by the next (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the host and port of a URL.
///
/// # Errors
/// When the name has no address, or none of its addresses answers: then the error of the first.
pub(super) async fn dial(url: Uri) -> io::Result<TokioIo<TcpStream>> {
    let host = url.host().unwrap_or_default();
    let default = if url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let port = url.port_u16().unwrap_or(default);
    let addresses = names::resolve(host).await.map_err(io::Error::other)?;
    let stream = connect_any(&addresses, port).await?;
    // Small messages that wait for nobody.
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

async fn connect_any(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut trying = FuturesUnordered::new();
    let mut first_error = None;
    loop {
        if let Some(address) = waiting.next() {
            let address = SocketAddr::new(*address, port);
            trying.push(async move {
                let connected = TcpStream::connect(address).await;
                connected.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
            });
        }
        let patience = async {
            match waiting.len() {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(STAGGER).await,
            }
        };
        tokio::select! {
            connected = trying.next() => match connected {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => {
                    first_error.get_or_insert(error);
                }
                None => {
                    let nothing = || io::Error::other("the name has no address");
                    return Err(first_error.unwrap_or_else(nothing));
                }
            },
            () = patience => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_tried_and_the_error_names_the_first() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("its address").port();
        // Nobody listens at the first two.
        let addresses =
            ["127.0.0.2", "127.0.0.3", "127.0.0.1"].map(|a| a.parse().expect("an address"));
        let stream = connect_any(&addresses, port).await.expect("connected");
        assert_eq!(stream.peer_addr().expect("a peer").ip(), addresses[2]);
        let error = connect_any(&addresses[..2], port)
            .await
            .expect_err("refused");
        assert!(error.to_string().starts_with("127.0.0.2:"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect_any(&[], port).await.is_err());
    }
}

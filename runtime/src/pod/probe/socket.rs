//! The sockets of HTTP, HTTPS, gRPC and TCP tries.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::exchange::{Exchange, Head};
use super::redirect::{self, Redirect};
use super::{grpc, hosts, http, tls};
use crate::pod::plan::Handler;

/// A try on its way.
#[derive(Debug)]
pub struct SocketTry {
    /// A gRPC call holds it, too.
    stream: Rc<TcpStream>,
    /// For messages.
    target: String,
    talk: Talk,
    connected: bool,
    /// What is tried now, and the address for handlers without a host.
    handler: Handler,
    pod: IpAddr,
    /// Requests so far, this one included.
    requests: u32,
}

#[derive(Debug)]
enum Talk {
    /// To connect is all.
    Connect,
    Http(Exchange),
    Grpc(grpc::Call),
}

/// What a try has come to.
pub type Outcome = Result<(), String>;

/// How far a try is.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is over.
    Over(Outcome),
    /// It has succeeded, in a way that deserves a word.
    Warning(String),
    /// The server has answered, with this status: a probe has failed.
    Refused(u16),
    /// The server leads to another place on the same host: [`SocketTry::follow`].
    Redirected(Handler),
}

impl SocketTry {
    /// Begins a try of an HTTP, gRPC or TCP handler from the calling thread's network namespace; `pod` is the address for
    /// handlers without a host. An error is the try's outcome already.
    pub fn begin(handler: &Handler, pod: IpAddr) -> Result<Self, String> {
        let (address, target) = destination(handler, pod)?;
        let failed = |e| format!("cannot connect to {target}: {}", io::Error::from(e));
        let stream = Rc::new(connecting(address).map_err(failed)?);
        let talk = match handler {
            Handler::Tcp { .. } => Talk::Connect,
            Handler::Http {
                tls: encrypted,
                host,
                path,
                headers,
                ..
            } => {
                let tls = match encrypted {
                    true => Some(handshake(host.as_deref(), address.ip())?),
                    false => None,
                };
                Talk::Http(Exchange::new(tls, http::request(address, path, headers)))
            }
            Handler::Grpc { service, .. } => {
                Talk::Grpc(grpc::Call::new(Rc::clone(&stream), address, service))
            }
            Handler::Exec { .. } | Handler::Sleep { .. } => return Err(no_socket()),
        };
        Ok(Self {
            stream,
            target,
            talk,
            connected: false,
            handler: handler.clone(),
            pod,
            requests: 1,
        })
    }

    /// Goes on where the server has led, as [`SocketTry::begin`] does. An error is the try's outcome.
    pub fn follow(&self, to: &Handler) -> Result<Self, String> {
        if self.requests >= redirect::REQUESTS_MAX {
            return Err(format!("stopped after {} redirects", self.requests));
        }
        let next = Self::begin(to, self.pod)?;
        Ok(Self {
            requests: self.requests + 1,
            ..next
        })
    }

    /// What is tried, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Goes on as far as it can without waiting; none when it has to wait for the socket (reading or writing, edge
    /// triggered).
    pub fn advance(&mut self) -> Option<Progress> {
        let failed = match self.try_advance() {
            Ok(progress) => return Some(progress),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            Err(e) if e.kind() == io::ErrorKind::NotConnected && !self.connected => return None,
            Err(e) if self.connected => format!("{} broke the connection: {e}", self.target),
            Err(e) => format!("cannot connect to {}: {e}", self.target),
        };
        Some(Progress::Over(Err(failed)))
    }

    fn try_advance(&mut self) -> io::Result<Progress> {
        if !self.connected {
            if let Err(e) = sockopt::socket_error(&self.stream)? {
                return Err(e.into());
            }
            self.stream.peer_addr()?;
            self.connected = true;
        }
        let outcome = match &mut self.talk {
            Talk::Connect => Ok(()),
            Talk::Grpc(call) => call.advance().ok_or(io::ErrorKind::WouldBlock)?,
            Talk::Http(exchange) => match exchange.advance(&self.stream)? {
                Ok(Head { status, location }) => {
                    return Ok(judge(&self.handler, self.pod, status, location.as_deref()));
                }
                Err(why) => Err(why),
            },
        };
        let told = outcome.map_err(|why| format!("{}: {why}", self.target));
        Ok(Progress::Over(told))
    }
}

/// What an answer means.
fn judge(handler: &Handler, pod: IpAddr, status: u16, location: Option<&str>) -> Progress {
    if !(200..400).contains(&status) {
        return Progress::Refused(status);
    }
    match location.filter(|_| redirect::is_redirect(status)) {
        None => Progress::Over(Ok(())),
        Some(location) => match redirect::resolve(handler, pod, location) {
            Redirect::Follow(to) => Progress::Redirected(to),
            Redirect::Elsewhere(host) => Progress::Warning(format!(
                "Probe terminated redirects: it is not sent on to {host}"
            )),
            Redirect::Invalid(why) => Progress::Over(Err(why)),
        },
    }
}

/// Where a handler connects to, and how messages call that.
fn destination(handler: &Handler, pod: IpAddr) -> Result<(SocketAddr, String), String> {
    let at = |host: &Option<String>, port| {
        address(host.as_deref(), pod).map(|ip| SocketAddr::new(ip, port))
    };
    match handler {
        Handler::Tcp { host, port } => {
            let address = at(host, *port)?;
            Ok((address, format!("tcp://{address}")))
        }
        Handler::Http {
            tls,
            host,
            port,
            path,
            ..
        } => {
            let address = at(host, *port)?;
            let scheme = if *tls { "https" } else { "http" };
            Ok((address, format!("{scheme}://{address}{path}")))
        }
        Handler::Grpc { port, .. } => {
            let address = SocketAddr::new(pod, *port);
            Ok((address, format!("grpc://{address}")))
        }
        Handler::Exec { .. } | Handler::Sleep { .. } => Err(no_socket()),
    }
}

fn no_socket() -> String {
    "this action needs no socket".to_owned()
}

/// A socket that has begun to connect.
fn connecting(address: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket.into()),
        Err(e) => Err(e),
    }
}

fn address(host: Option<&str>, pod: IpAddr) -> Result<IpAddr, String> {
    match host {
        None | Some("") => Ok(pod),
        Some(host) => hosts::resolve(host).map_err(|e| e.to_string()),
    }
}

fn handshake(host: Option<&str>, address: IpAddr) -> Result<ClientConnection, String> {
    let name = match host {
        Some(host) if !host.is_empty() && host.parse::<IpAddr>().is_err() => {
            ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?
        }
        _ => ServerName::from(address),
    };
    tls::connection(name).map_err(|e| format!("cannot set up TLS: {e}"))
}

impl AsFd for SocketTry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Serves one connection.
    fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let thread = thread::spawn(move || serve(listener.accept().expect("a client").0));
        (port, thread)
    }

    fn answer(stream: &mut (impl Read + Write), status: &str) {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a request");
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"GET /healthz HTTP/1.1\r\n"));
        for piece in [format!("HTTP/1.1 {status}\r\n"), "A: b\r\n\r\n".to_owned()] {
            stream.write_all(piece.as_bytes()).expect("a client");
            stream.flush().expect("a client");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn http(port: u16, tls: bool) -> Handler {
        Handler::Http {
            tls,
            host: None,
            port,
            path: "/healthz".to_owned(),
            headers: Vec::new(),
        }
    }

    fn outcome(handler: &Handler) -> Outcome {
        let mut attempt = SocketTry::begin(handler, LOCALHOST)?;
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            match attempt.advance() {
                Some(Progress::Over(outcome)) => return outcome,
                Some(Progress::Warning(_)) => return Ok(()),
                Some(Progress::Refused(status)) => return Err(status.to_string()),
                Some(Progress::Redirected(to)) => attempt = attempt.follow(&to)?,
                None => {}
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("no outcome")
    }

    fn serve_tls(stream: TcpStream) {
        let certificate = include_bytes!("../../../tests/data/self-signed.cert.der");
        let key = include_bytes!("../../../tests/data/self-signed.key.der");
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(
                    vec![CertificateDer::from(certificate.to_vec())],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())),
                )
                .expect("a certificate");
        let connection = ServerConnection::new(Arc::new(config)).expect("a server");
        answer(&mut rustls::StreamOwned::new(connection, stream), "200 OK");
    }

    #[test]
    fn an_answer_in_pieces_is_judged_by_its_status() {
        for (status, good) in [("200 OK", true), ("302 Found", true), ("503 No", false)] {
            let (port, thread) = server(move |mut stream| answer(&mut stream, status));
            assert_eq!(outcome(&http(port, false)).is_ok(), good, "{status}");
            thread.join().expect("a server");
        }
    }

    /// Sends each client on to another path, `/0`, `/1`, …; the last one gets 204.
    fn maze(listener: &TcpListener, last: u32) {
        loop {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            let text = String::from_utf8(request).expect("text");
            let path = text.split(' ').nth(1).expect("a path");
            let at: u32 = path[1..].parse().expect("a number");
            let answer = if at == last {
                "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
            } else {
                format!("HTTP/1.1 307 On\r\nLocation: /{}\r\n\r\n", at + 1)
            };
            // A client that gives up does not wait for it.
            stream.write_all(answer.as_bytes()).unwrap_or_default();
            if at == last {
                return;
            }
        }
    }

    #[test]
    fn redirects_on_the_same_host_are_followed_but_not_for_ever() {
        for (last, good) in [(1, true), (9, true), (10, false)] {
            let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
            let port = listener.local_addr().expect("an address").port();
            thread::spawn(move || maze(&listener, last));
            let handler = Handler::Http {
                tls: false,
                host: None,
                port,
                path: "/0".to_owned(),
                headers: Vec::new(),
            };
            assert_eq!(outcome(&handler).is_ok(), good, "{last}");
        }
    }

    #[test]
    fn a_redirect_to_another_host_is_a_success_that_is_told() {
        let (port, thread) = server(move |mut stream| {
            answer(&mut stream, "302 Found\r\nLocation: https://shop.example/");
        });
        let mut attempt = SocketTry::begin(&http(port, false), LOCALHOST).expect("a socket");
        let progress = loop {
            if let Some(progress) = attempt.advance() {
                break progress;
            }
            thread::sleep(Duration::from_millis(1));
        };
        assert!(
            matches!(&progress, Progress::Warning(text) if text.contains("shop.example")),
            "{progress:?}"
        );
        thread.join().expect("a server");
    }

    #[test]
    fn https_takes_any_certificate() {
        let (port, thread) = server(serve_tls);
        assert_eq!(outcome(&http(port, true)), Ok(()));
        thread.join().expect("a server");
    }

    #[test]
    fn a_server_without_tls_fails_an_https_probe() {
        let (port, thread) = server(|mut stream| {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
                .expect("a client");
        });
        assert!(outcome(&http(port, true)).is_err());
        thread.join().expect("a server");
    }

    #[test]
    fn a_server_that_hangs_up_fails() {
        let (port, thread) = server(drop);
        assert!(outcome(&http(port, false)).is_err());
        thread.join().expect("a server");
    }

    #[test]
    fn tcp_succeeds_when_somebody_listens_only() {
        let listener = TcpListener::bind((LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let host = Some("localhost".to_owned());
        let handler = Handler::Tcp { host, port };
        assert_eq!(outcome(&handler), Ok(()));
        drop(listener);
        assert!(outcome(&handler).expect_err("closed").contains("refused"));
    }
}

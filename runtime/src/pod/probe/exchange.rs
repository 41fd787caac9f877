//! An HTTP request and its answer over a socket that does not block, with TLS or without.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use rustls::ClientConnection;

use super::http;

/// An exchange on its way.
#[derive(Debug)]
pub(super) struct Exchange {
    tls: Option<Box<ClientConnection>>,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

/// What an answer begins with.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    /// The `Location` header.
    pub(super) location: Option<String>,
}

impl Exchange {
    pub(super) fn new(tls: Option<ClientConnection>, request: Vec<u8>) -> Self {
        Self {
            tls: tls.map(Box::new),
            request,
            sent: 0,
            answer: Vec::new(),
        }
    }

    /// Goes on as far as it can: until the answer's head is there, or why it will not come.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when it has to be waited for.
    pub(super) fn advance(&mut self, socket: &TcpStream) -> io::Result<Result<Head, String>> {
        let (mut plain, mut encrypted) = (socket, None);
        let stream: &mut dyn ReadWrite = match &mut self.tls {
            Some(tls) => encrypted.insert(rustls::Stream::new(tls.as_mut(), &mut plain)),
            None => &mut plain,
        };
        while self.sent < self.request.len() {
            self.sent += retry(|| stream.write(&self.request[self.sent..]))?;
        }
        let mut chunk = [0; 2048];
        loop {
            let n = match retry(|| stream.read(&mut chunk)) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
                n => n?,
            };
            self.answer.extend_from_slice(&chunk[..n]);
            match http::parse(&self.answer) {
                http::Response::Status { status, location } => {
                    return Ok(Ok(Head { status, location }));
                }
                http::Response::Invalid(why) => return Ok(Err(why.to_owned())),
                http::Response::Incomplete if n == 0 => {
                    return Ok(Err("closed the connection without an answer".to_owned()));
                }
                http::Response::Incomplete => {}
            }
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Until no signal interrupts it.
pub(super) fn retry(mut io: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match io() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

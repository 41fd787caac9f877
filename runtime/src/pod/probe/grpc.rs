//! One call of `grpc.health.v1.Health/Check` over HTTP/2 without TLS, as the kubelet makes it.
//!
//! The crate `h2` speaks HTTP/2; nothing of an async runtime is needed for that. Its futures are polled whenever the
//! socket may have something to say, and again as long as one of them has woken another. What the server sends is
//! limited as a whole, so neither frames without end nor many headers take more memory or time than that.
//!
//! Sources: the protocol's `health.proto`, and gRPC's `PROTOCOL-HTTP2.md`; words of messages as the kubelet has them
//! (`pkg/probe/grpc/grpc.go`).

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request, StatusCode, Version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::retry;

/// The most that a server may say, in bytes of frames. A health server says some hundred; without a limit one that sends
/// without end would keep this process from everything else.
pub const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// The most that headers may take once they are decompressed (`SETTINGS_MAX_HEADER_LIST_SIZE`): gRPC's own default is
/// half of it.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;

/// As much of a server's own words as is passed on, in characters.
const WORDS_MAX: usize = 1024;

/// The server does not have the method: code 12 of gRPC's status codes.
const UNIMPLEMENTED: u32 = 12;

/// A call on its way.
pub struct Call {
    work: Pin<Box<dyn Future<Output = Result<(), String>>>>,
    woken: Arc<Woken>,
}

impl Call {
    /// Begins a call on a socket that is connected and does not block. `service` may be empty: the server as a whole.
    pub fn new(socket: Rc<TcpStream>, address: SocketAddr, service: &str) -> Self {
        let wire = Wire {
            socket,
            left: ANSWER_MAX_BYTES,
        };
        Self {
            work: Box::pin(check(wire, address, question(service))),
            woken: Arc::default(),
        }
    }

    /// Goes on as far as it can without waiting; none when it has to wait for the socket. Not to be called again once it
    /// is over.
    pub fn advance(&mut self) -> Option<Result<(), String>> {
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut context = Context::from_waker(&waker);
        loop {
            self.woken.0.store(false, Ordering::Relaxed);
            if let Poll::Ready(outcome) = self.work.as_mut().poll(&mut context) {
                return Some(outcome);
            }
            if !self.woken.0.load(Ordering::Relaxed) {
                return None;
            }
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

/// A future has something to do that does not hang on the socket.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The call, and the connection that carries it.
async fn check(wire: Wire, address: SocketAddr, message: Bytes) -> Result<(), String> {
    let (client, connection) = client::Builder::new()
        .enable_push(false)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .handshake(wire)
        .await
        .map_err(|e| broken(&e))?;
    let (mut connection, mut call) = (pin!(connection), pin!(call(client, address, message)));
    poll_fn(|context| {
        let ended = connection.as_mut().poll(context);
        if let Poll::Ready(outcome) = call.as_mut().poll(context) {
            if ended.is_pending() {
                // It says goodbye now, as far as that goes without waiting.
                drop(connection.as_mut().poll(context));
            }
            return Poll::Ready(outcome);
        }
        match ended {
            Poll::Ready(Err(e)) => Poll::Ready(Err(broken(&e))),
            Poll::Ready(Ok(())) => Poll::Ready(Err("closed the connection".to_owned())),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn call(
    client: SendRequest<Bytes>,
    address: SocketAddr,
    message: Bytes,
) -> Result<(), String> {
    let broken = |e: h2::Error| broken(&e);
    let request = request(address).map_err(|e| e.to_string())?;
    let mut client = client.ready().await.map_err(broken)?;
    let (response, mut stream) = client.send_request(request, false).map_err(broken)?;
    stream.send_data(message, true).map_err(broken)?;
    let (head, mut body) = response.await.map_err(broken)?.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("answers with HTTP status {}", head.status.as_u16()));
    }
    let mut content = Vec::new();
    while let Some(piece) = body.data().await {
        content.extend_from_slice(&piece.map_err(broken)?);
    }
    // A server with nothing to say but a status says it in the headers.
    let trailers = body.trailers().await.map_err(broken)?;
    judge(&trailers.unwrap_or(head.headers), &content)
}

fn request(address: SocketAddr) -> http::Result<Request<()>> {
    Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(
            http::header::USER_AGENT,
            concat!("podling-probe/", env!("CARGO_PKG_VERSION")),
        )
        .body(())
}

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// gRPC's length-prefixed message: whether it is compressed, and how long it is.
fn question(service: &str) -> Bytes {
    let message = Question {
        service: service.to_owned(),
    }
    .encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// What a whole answer means: the headers that end it, and all that came before.
fn judge(end: &HeaderMap, content: &[u8]) -> Result<(), String> {
    let text = |name: &str| end.get(name).and_then(|value| value.to_str().ok());
    let Some(code) = text("grpc-status").and_then(|code| code.parse::<u32>().ok()) else {
        return Err("its answer is not gRPC: it has no status".to_owned());
    };
    if code != 0 {
        let words = words(text("grpc-message").unwrap_or_default());
        return Err(if code == UNIMPLEMENTED {
            format!("the server does not have grpc.health.v1.Health: {words}")
        } else {
            format!("the health check failed with gRPC status {code}: {words}")
        });
    }
    let &[compressed, l0, l1, l2, l3, ref message @ ..] = content else {
        return Err("its answer is not gRPC: it has no message".to_owned());
    };
    if compressed != 0 || u32::from_be_bytes([l0, l1, l2, l3]) as usize != message.len() {
        return Err("its answer is not one gRPC message".to_owned());
    }
    let answer = Answer::decode(message)
        .map_err(|e| format!("its answer is not a HealthCheckResponse: {e}"))?;
    match ServingStatus::try_from(answer.status) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("service unhealthy: it is {}", other.name())),
        Err(_) => Err(format!("service unhealthy: it is {}", answer.status)),
    }
}

/// A server's own words, which come percent-encoded.
fn words(encoded: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = encoded.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|digits| hex::decode(digits).ok());
        match escaped {
            Some(byte) => {
                bytes.extend(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    let decoded = String::from_utf8_lossy(&bytes);
    decoded.chars().take(WORDS_MAX).collect()
}

/// What went wrong between the two.
fn broken(error: &h2::Error) -> String {
    match error.get_io() {
        Some(io) if io.kind() == io::ErrorKind::FileTooLarge => io.to_string(),
        Some(io) => format!("broke the connection: {io}"),
        None if error.is_remote() => format!("ended the call: {error}"),
        None => format!("does not speak HTTP/2, or not by its rules: {error}"),
    }
}

/// The socket, as far as a server may talk. It wakes nobody: the event loop knows when it is ready.
struct Wire {
    socket: Rc<TcpStream>,
    left: usize,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if wire.left == 0 {
            let message = format!("says more than {ANSWER_MAX_BYTES} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::FileTooLarge, message)));
        }
        let room = buffer.remaining().min(wire.left);
        let space = buffer.initialize_unfilled_to(room);
        now(|| (&*wire.socket).read(space)).map_ok(|n| {
            wire.left -= n;
            buffer.advance(n);
        })
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        now(|| (&*self.socket).write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

fn now(io: impl FnMut() -> io::Result<usize>) -> Poll<io::Result<usize>> {
    match retry(io) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn a_question_is_framed_protobuf() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], *b"\0\0\0\0\x04\x0a\x02ab");
    }

    #[test]
    fn only_serving_is_success() {
        let good = headers(&[("grpc-status", "0")]);
        for (message, word) in [
            (&b"\0\0\0\0\x02\x08\x02"[..], "NOT_SERVING"),
            (b"\0\0\0\0\x02\x08\x03", "SERVICE_UNKNOWN"),
            (b"\0\0\0\0\x02\x08\x07", "it is 7"),
            (b"\0\0\0\0\0", "UNKNOWN"),
            (b"\0\0\0\0\x01\x08", "HealthCheckResponse"),
            (b"\x01\0\0\0\x02\x08\x01", "not one"),
            (b"\0\0\0\0\x09\x08\x01", "not one"),
            (b"", "no message"),
        ] {
            let error = judge(&good, message).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        judge(&good, b"\0\0\0\0\x02\x08\x01").expect("serving");
        // A field that a newer protocol may have.
        judge(&good, b"\0\0\0\0\x05\x08\x01\x12\x01x").expect("serving");
    }

    #[test]
    fn a_status_of_failure_is_told_in_the_servers_words() {
        for (fields, word) in [
            (
                &[("grpc-status", "12"), ("grpc-message", "unknown service")][..],
                "does not have grpc.health.v1.Health: unknown service",
            ),
            (
                &[("grpc-status", "5"), ("grpc-message", "k%C3%A4se 100%")],
                "status 5: k\u{e4}se 100%",
            ),
            (&[("grpc-status", "x")], "not gRPC"),
            (&[], "not gRPC"),
        ] {
            let error = judge(&headers(fields), b"").unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(content in proptest::collection::vec(any::<u8>(), 0..40), text in "[ -~]{0,40}") {
            let good = headers(&[("grpc-status", "0")]);
            judge(&good, &content).unwrap_or_default();
            prop_assert!(words(&text).len() <= text.len() * 3);
        }
    }
}

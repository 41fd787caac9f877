//! `podling demo serve`: a small web server whose health, readiness, memory and life can be spoiled over HTTP.
//!
//! One thread per connection, at most [`MAX_CONNECTIONS`]; one request per connection.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::{CommandError, Exit};
use super::say;

/// More than this many clients at once wait in the kernel's queue: the pod's memory limit is small.
const MAX_CONNECTIONS: usize = 64;
/// A request's head may not be longer, in bytes.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// A client that says nothing for this long is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest file that is served, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Serves until the process is told to stop.
pub(super) fn serve(
    port: u16,
    dir: Option<PathBuf>,
    slow_start: Duration,
) -> Result<Exit, CommandError> {
    let listener = listen(port)
        .map_err(|e| CommandError::new(format!("cannot listen on port {port}")).because(e))?;
    let address = listener
        .local_addr()
        .map_err(|e| CommandError::new("cannot learn the port").because(e))?;
    say(&format!("serving on port {}", address.port()))?;
    let server = Arc::new(Server::new(dir, slow_start));
    server.accept(&listener)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

struct Server {
    dir: Option<PathBuf>,
    started: Instant,
    slow_start: Duration,
    ready: AtomicBool,
    healthy: AtomicBool,
    requests: AtomicU64,
    connections: AtomicUsize,
}

/// What is sent back.
struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Self {
        let mut body: String = body.into();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body: body.into_bytes(),
        }
    }
}

/// What happens after the answer has been sent.
enum After {
    Nothing,
    Crash,
    FillMemory,
}

impl Server {
    fn new(dir: Option<PathBuf>, slow_start: Duration) -> Self {
        Self {
            dir,
            started: Instant::now(),
            slow_start,
            ready: AtomicBool::new(true),
            healthy: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) -> Result<Exit, CommandError> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, or the client has gone: neither ends a server.
                    say(&format!("cannot accept a connection: {e}"))?;
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            while self.connections.load(Ordering::Acquire) >= MAX_CONNECTIONS {
                thread::sleep(Duration::from_millis(5));
            }
            self.connections.fetch_add(1, Ordering::AcqRel);
            let server = Arc::clone(self);
            thread::spawn(move || {
                // A client that breaks off is its own loss.
                drop(server.handle(stream));
                server.connections.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }

    fn handle(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let Some(head) = read_head(&mut stream)? else {
            return respond(
                &mut stream,
                &Answer::text(431, "the request is too long"),
                false,
            );
        };
        let mut words = head.lines().next().unwrap_or_default().split(' ');
        let (method, target) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let (answer, after) = if matches!(method, "GET" | "HEAD" | "POST") {
            self.answer(path)
        } else {
            (Answer::text(405, "only GET"), After::Nothing)
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        if !matches!(path, "/healthz" | "/readyz") || answer.status >= 400 {
            drop(say(&format!("{method} {path} {}", answer.status)));
        }
        respond(&mut stream, &answer, method == "HEAD")?;
        drop(stream);
        match after {
            After::Nothing => {}
            After::Crash => {
                drop(say("crashing, as asked"));
                std::process::exit(1);
            }
            After::FillMemory => fill_memory(),
        }
        Ok(())
    }

    fn answer(&self, path: &str) -> (Answer, After) {
        let answer = match path {
            "/" => self.front_page(),
            "/healthz" => self.probe(&self.healthy, "healthy"),
            "/readyz" => self.probe(&self.ready, "ready"),
            "/ready/on" => set(&self.ready, true, "ready"),
            "/ready/off" => set(&self.ready, false, "ready"),
            "/health/on" => set(&self.healthy, true, "healthy"),
            "/health/off" => set(&self.healthy, false, "healthy"),
            "/env" => Answer::text(200, environment()),
            "/hostname" => Answer::text(200, hostname()),
            "/crash" => return (Answer::text(200, "crashing"), After::Crash),
            "/fill-memory" => {
                let text = "filling the memory until the kernel ends it";
                return (Answer::text(200, text), After::FillMemory);
            }
            _ => match path.strip_prefix("/files/") {
                Some(file) => self.file(file),
                None => Answer::text(404, "there is no such page; / lists what there is"),
            },
        };
        (answer, After::Nothing)
    }

    fn probe(&self, flag: &AtomicBool, word: &str) -> Answer {
        if self.started.elapsed() < self.slow_start {
            return Answer::text(503, "still starting");
        }
        if flag.load(Ordering::Relaxed) {
            Answer::text(200, word)
        } else {
            Answer::text(503, format!("not {word}"))
        }
    }

    /// The index.html of the served directory, else a page about this server.
    fn front_page(&self) -> Answer {
        if let Some(dir) = &self.dir
            && let Ok(page) = read_file(&dir.join("index.html"))
        {
            return Answer {
                status: 200,
                kind: "text/html; charset=utf-8",
                body: page,
            };
        }
        Answer::text(
            200,
            format!(
                "Hello from {} ({} s old, {} requests).\n\n\
                 /healthz /readyz           what the probes ask\n\
                 /ready/off /ready/on       stop and start being ready\n\
                 /health/off /health/on     stop and start being healthy\n\
                 /crash                     exit with code 1\n\
                 /fill-memory               grow until the memory limit\n\
                 /env /hostname /files/PATH look around\n",
                hostname(),
                self.started.elapsed().as_secs(),
                self.requests.load(Ordering::Relaxed)
            ),
        )
    }

    fn file(&self, name: &str) -> Answer {
        let Some(dir) = &self.dir else {
            return Answer::text(404, "started without --dir");
        };
        let inside = Path::new(name)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
        if !inside {
            return Answer::text(403, "a path must stay below the directory");
        }
        match read_file(&dir.join(name)) {
            Ok(body) => Answer {
                status: 200,
                kind: "application/octet-stream",
                body,
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Answer::text(404, "no such file"),
            Err(e) => Answer::text(500, e.to_string()),
        }
    }
}

fn set(flag: &AtomicBool, value: bool, word: &str) -> Answer {
    flag.store(value, Ordering::Relaxed);
    Answer::text(
        200,
        if value {
            word.to_owned()
        } else {
            format!("not {word}")
        },
    )
}

fn environment() -> String {
    let mut all: Vec<String> = std::env::vars_os()
        .map(|(k, v)| format!("{}={}", k.to_string_lossy(), v.to_string_lossy()))
        .collect();
    all.sort();
    all.join("\n")
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut body)?;
    Ok(body)
}

/// Grows by a mebibyte every 5 ms, so that one can watch it.
fn fill_memory() {
    let mut held = Vec::new();
    for mib in 1_u64.. {
        held.push(vec![0x5a_u8; 1 << 20]);
        if mib % 16 == 0 {
            drop(say(&format!("holding {mib} MiB")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    drop(held);
}

/// Up to the empty line; None if it is too long.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&chunk[..n]);
        if head.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn respond(stream: &mut TcpStream, answer: &Answer, head_only: bool) -> io::Result<()> {
    let reason = match answer.status {
        200 => "OK",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        answer.status,
        answer.kind,
        answer.body.len()
    );
    stream.write_all(head.as_bytes())?;
    if !head_only {
        stream.write_all(&answer.body)?;
    }
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server on a free port of loopback.
    fn start(dir: Option<PathBuf>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let server = Arc::new(Server::new(dir, Duration::ZERO));
        thread::spawn(move || server.accept(&listener));
        address
    }

    fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    #[test]
    fn readiness_can_be_switched() {
        let address = start(None);
        assert_eq!(get(address, "/readyz").0, 200);
        assert_eq!(get(address, "/ready/off").0, 200);
        assert_eq!(get(address, "/readyz").0, 503);
        assert_eq!(get(address, "/healthz").0, 200);
        assert_eq!(get(address, "/ready/on").0, 200);
        assert_eq!(get(address, "/readyz").0, 200);
    }

    #[test]
    fn files_stay_below_the_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("index.html"), "page").expect("a file");
        let address = start(Some(dir.path().to_owned()));
        assert_eq!(get(address, "/"), (200, "page".into()));
        assert_eq!(get(address, "/files/index.html"), (200, "page".into()));
        assert_eq!(get(address, "/files/none").0, 404);
        assert_eq!(get(address, "/files/../etc/passwd").0, 403);
        assert_eq!(get(address, "/files//etc/passwd").0, 403);
    }

    #[test]
    fn long_requests_are_refused() {
        let address = start(None);
        let mut stream = TcpStream::connect(address).expect("a connection");
        let head = format!("GET / HTTP/1.1\r\nX: {}\r\n", "x".repeat(MAX_HEAD_BYTES));
        stream.write_all(head.as_bytes()).expect("a request");
        let mut text = [0; 12];
        stream.read_exact(&mut text).expect("an answer");
        assert_eq!(&text, b"HTTP/1.1 431");
    }
}

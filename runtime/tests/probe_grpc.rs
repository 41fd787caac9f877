//! gRPC probes against a real server, and against some that mean no good.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podling_runtime::pod::plan::Handler;
use podling_runtime::pod::probe::grpc::ANSWER_MAX_BYTES;
use podling_runtime::pod::probe::socket::{Outcome, Progress, SocketTry};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

mod userland;

use userland::wait_for;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a server sends first: an empty SETTINGS frame.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn begin(port: u16, service: &str) -> SocketTry {
    let handler = Handler::Grpc {
        port,
        service: service.to_owned(),
    };
    SocketTry::begin(&handler, LOCALHOST).unwrap()
}

fn outcome(port: u16, service: &str) -> Outcome {
    let mut attempt = begin(port, service);
    match wait_for(|| attempt.advance()).expect("an outcome") {
        Progress::Over(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

/// A gRPC server in a thread of its own, until the test process ends.
fn grpc_server(routes: Routes) -> u16 {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
            let server = Server::builder().add_routes(routes);
            server.serve_with_incoming(incoming).await.unwrap();
        });
    });
    port
}

/// A server of one connection, which is anything but gRPC.
fn raw_server(serve: impl FnOnce(TcpStream) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
    (port, thread)
}

/// Repeats something until the client has gone; how many bytes that took.
fn repeat(mut stream: &TcpStream, piece: &[u8]) -> usize {
    let mut sent = 0;
    while let Ok(n) = stream.write(piece) {
        sent += n;
    }
    sent
}

#[test]
fn a_health_server_is_asked_for_its_services() {
    let (reporter, health) = tonic_health::server::health_reporter();
    let port = grpc_server(Routes::new(health));
    let set = |service: &'static str, status| {
        let reporter = reporter.clone();
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(async move { reporter.set_service_status(service, status).await });
    };
    set("shop.Cart", ServingStatus::Serving);
    set("shop.Till", ServingStatus::NotServing);
    assert_eq!(outcome(port, ""), Ok(()));
    assert_eq!(outcome(port, "shop.Cart"), Ok(()));
    for (service, words) in [
        ("shop.Till", "service unhealthy: it is NOT_SERVING"),
        ("no.such", "gRPC status 5"),
    ] {
        let error = outcome(port, service).unwrap_err();
        assert!(error.contains(words), "{error}");
        assert!(error.starts_with("grpc://127.0.0.1:"), "{error}");
    }
    set("shop.Till", ServingStatus::Serving);
    assert_eq!(outcome(port, "shop.Till"), Ok(()));
}

#[test]
fn a_server_without_the_health_service_says_so() {
    let port = grpc_server(Routes::default());
    let error = outcome(port, "").unwrap_err();
    assert!(
        error.contains("does not have grpc.health.v1.Health"),
        "{error}"
    );
}

#[test]
fn a_server_of_another_protocol_fails() {
    let (port, thread) = raw_server(|mut stream| {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
    });
    let error = outcome(port, "").unwrap_err();
    assert!(error.contains("does not speak HTTP/2"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_server_that_goes_away_fails() {
    let (port, thread) = raw_server(drop);
    let error = outcome(port, "").unwrap_err();
    assert!(error.contains("connection"), "{error}");
    thread.join().unwrap();
    let error = outcome(port, "").unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
}

/// Frames that are allowed for ever: the event loop must get its turn, and memory an end.
#[test]
fn frames_without_end_are_cut_short() {
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    let empty_data = [0, 0, 0, 0, 0, 0, 0, 0, 1].to_vec();
    let unknown = [&[0, 16, 0, 0xbb, 0, 0, 0, 0, 0][..], &[0; 4096]].concat();
    for frame in [ping, empty_data, unknown] {
        let (port, thread) = raw_server(move |mut stream| {
            stream.write_all(&SETTINGS).unwrap();
            repeat(&stream, &frame);
        });
        outcome(port, "").unwrap_err();
        thread.join().unwrap();
    }
}

#[test]
fn what_a_server_may_say_is_limited() {
    let (port, thread) = raw_server(move |mut stream| {
        stream.write_all(&SETTINGS).unwrap();
        repeat(&stream, &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    });
    let error = outcome(port, "").unwrap_err();
    let words = format!("says more than {ANSWER_MAX_BYTES} bytes");
    assert!(error.contains(&words), "{error}");
    thread.join().unwrap();
}

/// Headers that go on in frame after frame, and small ones that are each decompressed to 4 KiB.
#[test]
fn headers_without_end_are_cut_short() {
    let plain = [&[0, 1][..], b"a", &[0x7f, 0x81, 0x1f], &[b'x'; 4096]].concat();
    // An entry of the dynamic table, then again and again.
    let indexed = [&[0x40, 1][..], b"a", &[0x7f, 0x80, 0x1e], &[b'x'; 3967]].concat();
    let bomb = [indexed, vec![0xbe; 8000]].concat();
    for block in [plain, bomb] {
        let frame = |kind: u8, flags: u8, block: &[u8]| {
            let length = (block.len() as u32).to_be_bytes();
            let head = [&length[1..], &[kind, flags, 0, 0, 0, 1]].concat();
            [&head, block].concat()
        };
        let first = frame(1, 0, &block);
        let more = frame(9, 0, &block);
        let (port, thread) = raw_server(move |mut stream| {
            // The request has to be there first: its stream is named.
            let mut request = [0; 100];
            stream.write_all(&SETTINGS).unwrap();
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&first).unwrap();
            repeat(&stream, &more);
        });
        outcome(port, "").unwrap_err();
        thread.join().unwrap();
    }
}

/// The time limit is the caller's, who needs to be asked for it: nothing here may wait.
#[test]
fn a_slow_server_is_not_waited_for() {
    let (port, thread) = raw_server(|mut stream| {
        for byte in &SETTINGS {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        let mut rest = Vec::new();
        // Until the client gives up.
        stream.read_to_end(&mut rest).unwrap_or_default();
    });
    let mut attempt = begin(port, "");
    for _ in 0..50 {
        assert_eq!(attempt.advance(), None);
        thread::sleep(Duration::from_millis(2));
    }
    drop(attempt);
    thread.join().unwrap();
}

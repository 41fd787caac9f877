//! A small HTTP server on loopback that answers as a test tells it.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Send the body in pieces of so many bytes, with a pause before each.
    pub(crate) pace: Option<(usize, Duration)>,
    /// Send the body in chunks, again and again, until the client goes away.
    pub(crate) endless: bool,
    /// Send the body in chunks, so that its length is not known before.
    pub(crate) chunked: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            cut: None,
            pace: None,
            endless: false,
            chunked: false,
        }
    }

    /// Sends the body again and again, in chunks.
    pub(crate) fn endless(mut self) -> Self {
        (self.chunked, self.endless) = (true, true);
        self
    }

    /// Sends the body in pieces, with a pause before each.
    pub(crate) fn paced(mut self, bytes: usize, pause: Duration) -> Self {
        self.pace = Some((bytes, pause));
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Answer = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// Serves until the test's runtime ends. Gives host and port.
pub(crate) async fn serve(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer: Answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                // A client may go away at any time.
                drop(converse(stream, &answer).await);
            });
        }
    });
    address
}

async fn converse(stream: tokio::net::TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut parts = line.split(' ').map(str::to_owned);
        let (method, path) = (parts.next().unwrap(), parts.next().unwrap());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let len = headers
            .get("content-length")
            .map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await?;
        let reply = answer(&Request {
            method: method.clone(),
            path,
            headers,
            body,
        });
        let is_head = method == "HEAD";
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        head += &match reply.chunked {
            true => "Transfer-Encoding: chunked\r\n".to_owned(),
            false => format!("Content-Length: {}\r\n", reply.body.len()),
        };
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        if !is_head {
            send_body(&mut stream, &reply).await?;
        }
        stream.flush().await?;
        if reply.cut.is_some() {
            return Ok(());
        }
    }
}

async fn send_body(
    stream: &mut BufReader<tokio::net::TcpStream>,
    reply: &Reply,
) -> std::io::Result<()> {
    let sent = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
    let (piece_bytes, pause) = reply.pace.unwrap_or((sent.max(1), Duration::ZERO));
    loop {
        for piece in reply.body[..sent].chunks(piece_bytes) {
            tokio::time::sleep(pause).await;
            match reply.chunked {
                true => {
                    let head = format!("{:x}\r\n", piece.len());
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(piece).await?;
                    stream.write_all(b"\r\n").await?;
                }
                false => stream.write_all(piece).await?,
            }
            stream.flush().await?;
        }
        if !reply.endless {
            break;
        }
    }
    if reply.chunked && reply.cut.is_none() {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

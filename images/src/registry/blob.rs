//! A blob on its way, whatever breaks in between.
//!
//! A connection that breaks, stalls or crawls is replaced by another, which goes on at the same byte; if the registry
//! cannot, what is here already is read again and dropped. A host that brings nothing in several tries is passed over
//! for the next. So a download costs at most the time that the least rate allows, and a bounded number of bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use super::RegistryError;
use super::endpoint::{Endpoint, seconds};
use super::repository::{Capability, Repository};
use crate::manifest::Descriptor;

/// A download may read as much again, in sizes of the blob, of what is here already.
const AGAIN_MAX: u64 = 4;

/// The bytes of a blob from an offset to its end, in order.
pub(crate) struct BlobStream {
    repository: Arc<Repository>,
    descriptor: Descriptor,
    /// The next byte to give.
    position: u64,
    connection: Option<Connection>,
    /// The hosts to ask, the one that is asked now first; filled by the first request.
    hosts: Option<Vec<usize>>,
    attempts: Vec<RegistryError>,
    /// Tries in a row that brought next to nothing.
    failures: u32,
    /// Where the last try began that counts as one that brought something.
    try_began_at: u64,
    /// Bytes that were read a second time.
    again_bytes: u64,
    responses: u32,
}

struct Connection {
    endpoint: Arc<Endpoint>,
    response: Response,
    /// Bytes that come before what is wanted.
    skip: u64,
    window: Window,
}

/// What came in how long: the rate is measured over the time that we wait for a single byte. Only waiting counts: who
/// takes the bytes may be slower than the network.
#[derive(Default)]
struct Window {
    waited: Duration,
    bytes: u64,
}

impl BlobStream {
    pub(super) fn new(repository: Arc<Repository>, descriptor: Descriptor, offset: u64) -> Self {
        Self {
            repository,
            descriptor,
            position: offset,
            connection: None,
            hosts: None,
            attempts: Vec::new(),
            failures: 0,
            try_began_at: offset,
            again_bytes: 0,
            responses: 0,
        }
    }

    /// How many responses what was given so far came in.
    pub(crate) fn responses(&self) -> u32 {
        self.responses
    }

    /// The next piece; none when all of the blob was given. Cancel-safe: a piece that was not given is asked for again.
    ///
    /// # Errors
    /// When no host brings more. What was given before stays good; another stream may go on there later.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.position >= self.descriptor.size {
                self.connection = None;
                return Ok(None);
            }
            let error = match self.piece().await {
                Ok(piece) if piece.is_empty() => continue,
                Ok(piece) => return Ok(Some(piece)),
                Err(e) => e,
            };
            self.connection = None;
            self.recover(error).await?;
        }
    }

    /// What comes next, which may be nothing of use yet.
    async fn piece(&mut self) -> Result<Bytes, RegistryError> {
        if self.connection.is_none() {
            self.connection = Some(self.connect().await?);
            self.responses += 1;
        }
        let Some(connection) = &mut self.connection else {
            return Ok(Bytes::new());
        };
        let endpoint = &connection.endpoint;
        let digest = &self.descriptor.digest;
        let began = Instant::now();
        let Some(mut piece) = endpoint
            .chunk(&mut connection.response, &format!("layer {digest}"))
            .await?
        else {
            return Err(RegistryError::TooShort {
                registry: endpoint.registry().to_owned(),
                what: format!("layer {digest}"),
                bytes: self.position,
                total_bytes: self.descriptor.size,
            });
        };
        connection
            .window
            .add(piece.len(), began.elapsed(), endpoint)?;
        let skipped = connection.skip.min(piece.len() as u64);
        connection.skip -= skipped;
        self.again_bytes += skipped;
        piece = piece.slice(usize::try_from(skipped).unwrap_or(piece.len())..);
        if self.position + piece.len() as u64 > self.descriptor.size {
            return Err(endpoint.protocol(format!(
                "layer {digest} is larger than the {} bytes of the manifest",
                self.descriptor.size
            )));
        }
        if self.again_bytes > self.descriptor.size.saturating_mul(AGAIN_MAX) {
            return Err(endpoint.protocol(format!(
                "layer {digest} was begun again and again: connections break, and it cannot resume"
            )));
        }
        self.position += piece.len() as u64;
        Ok(piece)
    }

    /// Asks the present host for what is missing.
    async fn connect(&mut self) -> Result<Connection, RegistryError> {
        if self.hosts.is_none() {
            self.hosts = Some(self.repository.sites_for(Capability::Pull)?);
        }
        let host = self.hosts.as_ref().and_then(|hosts| hosts.first()).copied();
        let mut candidates = self.repository.candidates(host.unwrap_or_default()).await?;
        loop {
            let endpoint = candidates.endpoint()?;
            match endpoint.open_blob(&self.descriptor, self.position).await {
                Ok((response, skip)) => {
                    candidates.settle(Arc::clone(&endpoint));
                    return Ok(Connection {
                        endpoint,
                        response,
                        skip,
                        window: Window::default(),
                    });
                }
                Err(e) => candidates.next_after(e)?,
            }
        }
    }

    /// Waits for the next try, or goes on to the next host, or gives the error up.
    async fn recover(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let patience = self.repository.patience().clone();
        let brought = self.position - self.try_began_at;
        self.try_began_at = self.position;
        // A byte each minute is no progress.
        let is_progress = brought > 0 && brought >= patience.least_bytes(patience.idle);
        self.failures = if is_progress { 1 } else { self.failures + 1 };
        let waited = self
            .repository
            .retries()
            .wait(&patience, error, self.failures);
        let Err(error) = waited.await else {
            return Ok(());
        };
        self.attempts.push(error);
        let hosts = self.hosts.get_or_insert_default();
        if !hosts.is_empty() {
            hosts.remove(0);
        }
        if hosts.is_empty() {
            let attempts = std::mem::take(&mut self.attempts);
            return Err(RegistryError::of_all(attempts).unwrap_or(RegistryError::Cancelled));
        }
        self.failures = 0;
        Ok(())
    }
}

impl Window {
    /// Counts, and at the end of each window compares with the least rate.
    fn add(
        &mut self,
        bytes: usize,
        waited: Duration,
        endpoint: &Endpoint,
    ) -> Result<(), RegistryError> {
        let patience = endpoint.patience();
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < patience.idle {
            return Ok(());
        }
        let Self { waited, bytes } = std::mem::take(self);
        if bytes >= patience.least_bytes(waited) {
            return Ok(());
        }
        Err(RegistryError::TooSlow {
            registry: endpoint.registry().to_owned(),
            what: format!(
                "it brought {bytes} bytes in {}, less than {} bytes a second",
                seconds(waited),
                patience.min_bytes_per_second
            ),
        })
    }
}

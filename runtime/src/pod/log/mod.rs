//! Container logs in CRI format (`kubernetes/design-proposals-archive/node/kubelet-cri-logging.md`).
//!
//! ```text
//! <dir>/<run>.log                            being written
//! <dir>/<run>.log.20261121-052400            full, the older ones with earlier names
//! <dir>/<run>.log.20261121-052400-000001     another of the same second
//! ```
//!
//! A file is rotated before a record would make it larger than its limit. Memory is bounded by [`MAX_LINE_BYTES`] for
//! each stream, whatever the container writes. A disk that is full loses records and nothing else: what was half
//! written is taken back, so that the file stays in format, and the container never notices.

mod file;
mod record;
mod tail;

pub use file::LogWriter;
pub use record::{MAX_LINE_BYTES, Stream};
pub use tail::last_words;

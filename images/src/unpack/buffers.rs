//! Memory of pieces, used again and again: fresh memory costs a page fault for every 4 KiB of it.
//!
//! A buffer is filled by one thread and passed on as [`Bytes`]; when the last thread lets go of those, it comes back.
//! How many there are is bounded by who passes them on.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers of one size.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    size: usize,
    /// Those that nobody uses at the moment.
    unused: Arc<Mutex<Vec<Box<[u8]>>>>,
}

/// One that is used, until it is dropped.
struct Buffer {
    memory: Box<[u8]>,
    filled: usize,
    home: Buffers,
}

impl Buffers {
    /// Buffers of `size` bytes.
    pub(super) fn of(size: usize) -> Self {
        Self {
            size,
            unused: Arc::default(),
        }
    }

    /// As much of the reader as a buffer holds; less only at its end, and nothing after it.
    pub(super) fn read_piece(&self, reader: &mut impl Read) -> io::Result<Bytes> {
        let mut buffer = self.take();
        while buffer.filled < buffer.memory.len() {
            match reader.read(&mut buffer.memory[buffer.filled..]) {
                Ok(0) => break,
                Ok(n) => buffer.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Bytes::from_owner(buffer))
    }

    fn take(&self) -> Buffer {
        let unused = self.unused(Vec::pop);
        Buffer {
            memory: unused.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()),
            filled: 0,
            home: self.clone(),
        }
    }

    fn unused<T>(&self, work: impl FnOnce(&mut Vec<Box<[u8]>>) -> T) -> T {
        // Nothing can panic half way under this lock.
        work(&mut self.unused.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.unused(|unused| unused.push(memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_whole_and_its_memory_comes_back() {
        const SIZE: usize = 100_000;
        let content: Vec<u8> = (0..SIZE + 10).map(|i| i as u8).collect();
        // Gives little at a time, as a pipe or a decompressor does.
        let mut reader = io::BufReader::with_capacity(1000, &*content);
        let buffers = Buffers::of(SIZE);
        let first = buffers.read_piece(&mut reader).unwrap();
        assert!(first == content[..SIZE]);
        let address = first.as_ptr();
        let also_first = first.slice(10..);
        drop(first);
        let second = buffers.read_piece(&mut reader).unwrap();
        assert_ne!(second.as_ptr(), address, "somebody still reads the first");
        drop(also_first);
        assert!(second == content[SIZE..]);
        let third = buffers.read_piece(&mut reader).unwrap();
        assert!(third.is_empty());
        assert_eq!(buffers.unused(|unused| unused.len()), 0);
        drop((second, third));
        assert_eq!(buffers.unused(|unused| unused.len()), 2);
    }
}

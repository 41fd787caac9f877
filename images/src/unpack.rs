//! Turns a layer tar into a directory.

/// What a layer may ask for. The defaults hold for any honest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one layer.
    pub entries: u64,
    /// Bytes of one layer after decompression.
    pub layer_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            layer_bytes: 64 << 30,
        }
    }
}

//! criu's messages: protocol buffers (version 2), as far as requests and answers use them. `images/rpc.proto` of criu
//! numbers the fields.

/// A message that is written.
#[derive(Debug, Clone, Default)]
pub(in crate::oci) struct Message {
    bytes: Vec<u8>,
}

/// How a field's value is encoded (protobuf.dev, "Message Structure").
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Message {
    /// A number, also an enumeration's.
    pub fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    /// A flag, written when it is set.
    pub fn flag(&mut self, field: u64, value: bool) -> &mut Self {
        if value {
            self.number(field, 1);
        }
        self
    }

    /// A text.
    pub fn text(&mut self, field: u64, value: &str) -> &mut Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message within.
    pub fn message(&mut self, field: u64, value: &Message) -> &mut Self {
        self.bytes(field, &value.bytes)
    }

    /// What is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

/// A field that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::oci) enum Value<'a> {
    /// A number; negative ones are two's complement.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number; 0 for what is none.
    pub fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// The bytes; none for a number.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The fields of a message, in order; none when it is malformed.
pub(in crate::oci) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let value = match key & 7 {
            VARINT => Value::Number(take_varint(&mut bytes)?),
            BYTES => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            FIXED_64 => Value::Bytes(take(&mut bytes, 8)?),
            FIXED_32 => Value::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut inner = Message::default();
        inner.text(1, "post-dump").number(2, 300);
        let mut message = Message::default();
        message
            .number(1, 6)
            .flag(2, true)
            .flag(3, false)
            .message(5, &inner);
        // The example of the encoding's documentation: field 2 is 300.
        assert!(inner.as_bytes().ends_with(&[0x10, 0xac, 0x02]));
        let read = fields(message.as_bytes()).expect("well-formed");
        assert_eq!(read[0], (1, Value::Number(6)));
        assert_eq!(read[1], (2, Value::Number(1)));
        assert_eq!(read.len(), 3);
        let within = fields(read[2].1.bytes()).expect("well-formed");
        assert_eq!(within[0].1.bytes(), b"post-dump");
        assert_eq!(within[1].1.number(), 300);
    }

    proptest::proptest! {
        #[test]
        fn rubbish_is_no_message_and_no_panic(bytes: Vec<u8>) {
            let read = fields(&bytes);
            proptest::prop_assert!(read.is_none_or(|read| read.len() <= bytes.len()));
        }
    }
}

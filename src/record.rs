//! Values written one after the other as bytes, and read again by another process: numbers and byte strings. What was
//! cut short, or holds what nobody wrote, gives `None` where it is read, never a wrong value.

/// Writes one record.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: impl Into<u64>) -> Self {
        self.0.extend(number.into().to_le_bytes());
        self
    }

    /// Adds a number that may be missing.
    #[must_use]
    pub fn maybe(self, number: Option<u64>) -> Self {
        match number {
            None => self.number(0_u64),
            Some(number) => self.number(1_u64).number(number),
        }
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut record = self.number(bytes.len() as u64);
        record.0.extend(bytes);
        record
    }

    /// The record.
    #[must_use]
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads one record, in the order in which it was written.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `record`.
    #[must_use]
    pub fn new(record: &'a [u8]) -> Self {
        Self(record)
    }

    /// The next number, if it fits.
    pub fn number<T: TryFrom<u64>>(&mut self) -> Option<T> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        u64::from_le_bytes(*number).try_into().ok()
    }

    /// The next number that may be missing.
    pub fn maybe(&mut self) -> Option<Option<u64>> {
        match self.number()? {
            0_u64 => Some(None),
            1 => self.number().map(Some),
            _ => None,
        }
    }

    /// The next bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Whether nothing is left, as there should be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let record = Writer::default()
            .number(7_u32)
            .maybe(None)
            .maybe(Some(u64::MAX))
            .bytes(b"a\0b")
            .bytes(b"")
            .done();
        let mut reader = Reader::new(&record);
        assert_eq!(reader.number(), Some(7_u8));
        assert_eq!(reader.maybe(), Some(None));
        assert_eq!(reader.maybe(), Some(Some(u64::MAX)));
        assert_eq!(reader.bytes(), Some(&b"a\0b"[..]));
        assert!(!reader.is_done());
        assert_eq!(reader.bytes(), Some(&b""[..]));
        assert!(reader.is_done());
        assert_eq!(reader.number::<u64>(), None);
    }

    #[test]
    fn what_is_cut_short_or_does_not_fit_is_nothing() {
        let record = Writer::default().bytes(b"abcdef").done();
        for length in 0..record.len() {
            assert_eq!(Reader::new(&record[..length]).bytes(), None);
        }
        let record = Writer::default().number(256_u64).number(2_u64).done();
        let mut reader = Reader::new(&record);
        assert_eq!(reader.number::<u8>(), None);
        assert_eq!(reader.maybe(), None);
    }
}
